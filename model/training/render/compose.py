"""Vectorised procedural portrait renderer (prototype).

Every layer is a signed-distance field evaluated on the whole pixel grid for a whole batch at once,
then composited back to front with analytic anti-aliasing.  Nothing branches on a sample, so the same
code runs on CPU and GPU and may be compiled.  Coordinates: x right, y down, image spans [-1, 1].
Head rotation is done by un-rotating the pixel on a cylinder/sphere before front features are evaluated,
which gives correct foreshortening and parallax for a few operations per pixel.
"""
from __future__ import annotations
import math, torch

T = torch.Tensor

# ------------------------------------------------------------------ palettes
SKIN = torch.tensor([[.99,.87,.79],[.97,.81,.70],[.94,.75,.62],[.89,.68,.53],[.80,.58,.43],[.68,.46,.33],[.54,.35,.25],[.42,.27,.20],[.33,.21,.16]])
HAIR = torch.tensor([[.10,.09,.11],[.18,.12,.10],[.30,.19,.13],[.45,.28,.17],[.62,.42,.23],[.83,.66,.38],[.93,.82,.58],[.60,.24,.12],[.45,.14,.10],[.62,.62,.65],[.87,.86,.86],[.20,.42,.52],[.72,.35,.50],[.38,.28,.55]])
IRIS = torch.tensor([[.33,.20,.12],[.22,.13,.09],[.45,.33,.16],[.30,.47,.32],[.28,.48,.66],[.45,.58,.68],[.40,.42,.46]])
CLOTH = torch.tensor([[.16,.22,.36],[.80,.33,.30],[.93,.93,.95],[.18,.45,.44],[.94,.72,.30],[.36,.34,.55],[.25,.27,.30],[.56,.72,.58],[.86,.56,.50],[.30,.50,.75],[.55,.24,.35],[.75,.70,.62]])
BG = torch.tensor([[.80,.88,.95],[.96,.87,.80],[.86,.93,.86],[.90,.86,.95],[.98,.93,.78],[.30,.36,.47],[.22,.32,.34],[.46,.38,.48],[.70,.80,.82],[.93,.80,.80],[.62,.70,.60],[.88,.88,.90]])

# style table: back_rx back_ry back_cy back_len wave freq | vol h0 aL aR p fringe ffreq bun  strands
STYLES = torch.tensor([
 # 0 bald
 [0.0, .0, .0, -2.0, .0,  0., -.30, -2.0, 0.0, 0.0, 1.6, .0,  0., 0.0, 0.],
 # 1 short crop
 [0.0, .0, .0, -2.0, .0,  0., .045, -.375, 1.5, 1.5, 2.6, .012, 19., 0.0, 1.],
 # 2 side swoop short
 [0.0, .0, .0, -2.0, .006, 9., .085, -.44, 2.6, .62, 1.35, .0, 0., 0.0, 1.],
 # 3 bangs + bob
 [.60, .56, -.10, .36, .0, 0., .075, -.235, .55, .55, 2.6, .014, 26., 0.0, 1.],
 # 4 long straight centre part
 [.59, .60, -.10, .95, .0, 0., .07, -.50, .95, .95, .92, .0, 0., 0.0, 1.],
 # 5 afro
 [.74, .68, -.30, -2., .020, 15., .10, -.36, 1.4, 1.4, 2.6, .018, 34., 0.0, .3],
 # 6 bun
 [0.0, .0, .0, -2.0, .0, 0., .055, -.42, 1.3, 1.3, 2.0, .0, 0., 1.0, 1.],
 # 7 long wavy side part
 [.63, .60, -.08, .85, .035, 11., .085, -.48, 1.5, .72, 1.15, .012, 9., 0.0, 1.],
 # 8 curly short
 [.55, .50, -.26, -2., .022, 19., .085, -.35, 1.35, 1.35, 2.4, .022, 27., 0.0, .4],
 # 9 pixie fringe
 [.50, .48, -.16, .06, .012, 13., .065, -.40, .15, 1.15, 1.5, .016, 21., 0.0, 1.],
])

MOTION = ("jaw","open","width","round","press","ftuck","teeth","tongue","smile","blink","gaze_x","gaze_y","brow","brow_tilt","yaw","pitch","roll","tx","ty","breath")

# ------------------------------------------------------------------ sdf helpers (negative inside)
def ell(x,y,cx,cy,rx,ry):
    px=(x-cx)/rx; py=(y-cy)/ry
    k0=torch.sqrt(px*px+py*py+1e-9); k1=torch.sqrt((px/rx)**2+(py/ry)**2+1e-9)
    return k0*(k0-1)/k1
def smin(a,b,k):
    h=(0.5+0.5*(b-a)/k).clamp(0,1); return b+(a-b)*h-k*h*(1-h)
def smax(a,b,k): return -smin(-a,-b,k)
def sst(a,b,x):
    t=((x-a)/(b-a)).clamp(0,1); return t*t*(3-2*t)
def gauss(x,y,cx,cy,sx,sy): return torch.exp(-((x-cx)/sx)**2-((y-cy)/sy)**2)

class Canvas:
    def __init__(s,B,H,W,device): s.img=torch.zeros(B,3,H,W,device=device); s.px=2.0/H
    def cov(s,d,soft=1.0): return (0.5-d/(s.px*soft)).clamp(0,1)
    def paint(s,m,col):
        """m: B,H,W coverage; col: B,3,1,1 or B,3,H,W"""
        s.img=s.img+(col-s.img)*m[:,None]
    def mul(s,m,col):
        """multiply by col where m"""
        s.img=s.img*(1+(col-1)*m[:,None])

_CUT=False
def cut():
    """section border: compiled separately (see compiled())"""
    if _CUT: torch._dynamo.graph_break()

def compiled(**kw):
    """render() as a chain of compiled groups"""
    global _CUT
    _CUT=True
    return torch.compile(render,dynamic=False,**kw)

def pick(tab,idx): return tab.to(idx.device)[idx][:,:,None,None]

def sample_identity(n,generator=None,device="cpu"):
    B,gen=n,generator
    r=lambda lo,hi: lo+(hi-lo)*torch.rand(B,generator=gen,device=device)
    ri=lambda n: torch.randint(0,n,(B,),generator=gen,device=device)
    jit=lambda c,a: (c+a*(torch.rand(B,3,1,1,generator=gen,device=device)-.5)).clamp(0,1)
    I={}
    sk=ri(len(SKIN)); I["skin"]=jit(pick(SKIN,sk),.03)
    # dark skins mostly get dark hair, which keeps pictures plausible; fancy colours stay possible
    hi=ri(len(HAIR)); hi=torch.where((sk>=5)&(torch.rand(B,generator=gen,device=device)<.8),hi%3,hi); I["hair"]=jit(pick(HAIR,hi),.04)
    I["brow_c"]=I["hair"]*.75+.02; I["iris"]=jit(pick(IRIS,ri(len(IRIS))),.05)
    I["cloth"]=jit(pick(CLOTH,ri(len(CLOTH))),.06); I["cloth2"]=jit(pick(CLOTH,ri(len(CLOTH))),.06)
    I["bg1"]=jit(pick(BG,ri(len(BG))),.06); I["bg2"]=(I["bg1"]*(.80+.25*torch.rand(B,1,1,1,generator=gen,device=device))).clamp(0,1)
    I["bg_kind"]=ri(4); I["bg_seed"]=torch.rand(B,6,generator=gen,device=device)
    I["style"]=ri(len(STYLES)); I["sty"]=STYLES.to(device)[I["style"]]
    I["collar"]=ri(5)
    I["W"]=r(.405,.455); I["crH"]=r(.50,.54); I["jawW"]=r(.315,.40); I["chin"]=r(.455,.525); I["chinsq"]=r(.06,.16)
    I["eye_dx"]=r(.176,.196); I["eye_y"]=r(-.045,-.005); I["eye_rx"]=r(.092,.110); I["eye_ry"]=r(.060,.082); I["eye_tilt"]=r(-.10,.16)
    I["iris_r"]=r(.050,.058); I["lash"]=r(.012,.022); I["brow_y"]=r(-.182,-.160); I["brow_t"]=r(.017,.033); I["brow_arch"]=r(.5,1.9); I["brow_len"]=r(.095,.112)
    I["nose_l"]=r(.13,.165); I["nose_w"]=r(.046,.066); I["mouth_y"]=r(.265,.295); I["mouth_w"]=r(.148,.178); I["lip_u"]=r(.024,.036); I["lip_l"]=r(.032,.046)
    I["lip_red"]=r(.15,.75); I["blush"]=r(.05,.40)
    I["beard"]=(torch.rand(B,generator=gen,device=device)<.22).float()*r(.35,1.); I["must"]=torch.maximum((torch.rand(B,generator=gen,device=device)<.07).float(),(I["beard"]>.5).float())*r(.6,1.)
    long=(STYLES.to(device)[I["style"]][:,3]>0)
    I["beard"]=torch.where(long,torch.zeros_like(I["beard"]),I["beard"]); I["must"]=torch.where(long,torch.zeros_like(I["must"]),I["must"])
    I["glasses"]=(torch.rand(B,generator=gen,device=device)<.25).float(); I["gl_rx"]=r(.128,.144); I["gl_ry"]=r(.105,.135); I["freck"]=(torch.rand(B,generator=gen,device=device)<.18).float()
    I["earring"]=(torch.rand(B,generator=gen,device=device)<.22).float(); I["scale"]=r(1.12,1.24); I["light"]=r(-1,1); I["part"]=r(-.10,.10)
    return I

def neutral(n,device="cpu"):
    return {k:torch.zeros(n,device=device) for k in MOTION}

def take(identity,index):
    return {k:v[index] for k,v in identity.items()}

def concat(identities):
    return {k:torch.cat([i[k] for i in identities]) for k in identities[0]}

def heroes():
    return sample_identity(12,torch.Generator().manual_seed(5))

def render_frames(identity,motion,size,batch=64,fn=None):
    """-> uint8 [n,3,S,S], mouth centre in pixels [n,2] (x, y)"""
    n=identity["skin"].shape[0]; out,mouth=[],[]; fn=fn or render
    for s in range(0,n,batch):
        ii=torch.arange(s,s+batch,device=identity["skin"].device).clamp(max=n-1); k=min(batch,n-s)
        img,aux=fn(take(identity,ii),take(motion,ii),size)
        out.append((img[:k]*255).round().clamp(0,255).to(torch.uint8)); mouth.append((aux["mouth_xy"][:k]+1)/2*size)
    return torch.cat(out),torch.cat(mouth)


def render(identity,motion,size=256):
    I,M=identity,motion
    dev=I["skin"].device; B=I["skin"].shape[0]; H=W=size
    v=lambda t: t[:,None,None]
    ys=(torch.arange(H,device=dev)+.5)/H*2-1; xs=(torch.arange(W,device=dev)+.5)/W*2-1
    Y,X=torch.meshgrid(ys,xs,indexing="ij"); X=X[None].expand(B,H,W); Y=Y[None].expand(B,H,W)
    c=Canvas(B,H,W,dev); one=torch.ones(1,3,1,1,device=dev)
    i={k:(v(t) if t.dim()==1 and t.is_floating_point() else t) for k,t in I.items()}; m={k:v(t) for k,t in M.items()}
    skin,hair=I["skin"],I["hair"]; lum=skin.mean(1,keepdim=True)
    shade=skin*torch.tensor([.80,.685,.66],device=dev)[None,:,None,None]; deep=skin*torch.tensor([.60,.46,.44],device=dev)[None,:,None,None]
    lite=(skin+.10*(1.05-skin)).clamp(0,1)
    # ---------------- background
    t=((Y+1)/2)[:,None]; c.img=I["bg1"]*(1-t)+I["bg2"]*t
    bs=I["bg_seed"]; k=I["bg_kind"]
    f=lambda n:(k==n).float()[:,None,None]
    halo=gauss(X,Y,0.,-.15,.95,.95); c.img=c.img+(.10*halo)[:,None]*(1-c.img)
    d1=ell(X,Y,v(bs[:,0]*1.4-.7),v(bs[:,1]*1.2-.9),.42,.42); c.paint(c.cov(d1)*f(1)*.35,I["bg2"]*.6+.4*I["cloth2"])
    d2=ell(X,Y,v(bs[:,2]*1.4-.7),v(bs[:,3]*1.2-.4),.30,.30); c.paint(c.cov(d2)*f(1)*.30,I["bg1"]*.5+.5)
    wx=(X-v(bs[:,0]*.5-.85)).abs(); wd=torch.maximum(wx-.30,(Y+.45).abs()-.42); bars=torch.minimum(wx,(Y+.45).abs())
    c.paint(c.cov(wd)*f(2)*.8,(I["bg1"]*.35+.65)); c.paint(c.cov(wd)*c.cov(bars-.012)*f(2),I["bg2"]*.8); c.paint(c.cov(wd.abs()-.016)*f(2),I["bg2"]*.75)
    st=torch.sin((X*.8+Y+v(bs[:,4])*3)*9.); c.paint(sst(-.05,.05,st)*f(3)*.18,I["bg2"]*.9)
    # ---------------- head frame
    hx=v(M["tx"]); hy=-.10+v(M["ty"])+.004*m["breath"]; sc=i["scale"]
    cr,sr=torch.cos(m["roll"]),torch.sin(m["roll"])
    px,py=(X-hx)/sc,(Y-hy-.45)/sc            # roll pivots about the neck
    x=px*cr+py*sr; y=-px*sr+py*cr+.45
    yaw,pit=m["yaw"],m["pitch"]; Wd=i["W"]
    R=Wd*1.16; RY=.62
    a=torch.asin((x/R).clamp(-.999,.999)); xf=R*torch.sin((a-yaw).clamp(-1.57,1.57))+ (x-x.clamp(-R,R))
    b=torch.asin(((y-.02)/RY).clamp(-.999,.999)); yf=.02+RY*torch.sin((b-pit).clamp(-1.57,1.57))+(y-.02-(y-.02).clamp(-RY,RY))
    jaw=m["jaw"]; jd=.060*jaw
    cut()
    # ---------------- shoulders / neck frame
    bx=X-.35*hx; by=Y-.30*v(M["ty"])-.008*m["breath"]
    sty=I["sty"]; S=lambda n: v(sty[:,n])
    ang=torch.atan2(x,-(y-.0)); wave=S(4)*torch.sin(S(5)*ang+ v(bs[:,5])*6.)+.5*S(4)*torch.sin(2.3*S(5)*ang)
    hasback=(S(0)>0).float()
    # hair behind
    brx=S(0).clamp_min(.05)*Wd/.43; bry=S(1).clamp_min(.05)
    xb=x-.10*yaw*hasback
    top=ell(xb,y,torch.zeros_like(yaw),S(2),brx,bry)
    wl=S(4)*.9*torch.sin(S(5)*1.3*y+2.)
    fall=torch.maximum((xb+wl).abs()-(brx*.99-.05*(y-S(2)).clamp(0,1)),torch.maximum(S(2)-y,y-S(3)))-.0
    back=torch.where(S(3)>-1.,smin(top,fall,.06),top)+wave
    hs=.62+.38*torch.sin(60*ang+5*torch.sin(7*ang))*.12*S(14)
    bm=c.cov(back)*hasback; c.paint(bm,hair*.62*torch.ones_like(hs)[:,None])
    ih=ell(bx,by,torch.zeros_like(yaw),torch.full_like(yaw,.58),.33,.21); c.paint(c.cov(ih)*(I["collar"]==4).float()[:,None,None],I["cloth"]*.50)
    cut()
    # neck
    nw=.172*i["jawW"]/.36; nk=torch.maximum((bx-.25*hx*(1-sst(.3,.9,by))).abs()-(nw+.10*sst(.55,.95,by)**2),.15-by)
    c.paint(c.cov(nk),shade*.55+skin*.45)
    chiny=hy+sc*(i["chin"]+.02+jd); sh=sst(.20,-.02,(by-chiny)-.10*((bx-hx)/.3)**2*-1)
    c.paint(c.cov(nk)*sh*.75,deep*.55+shade*.45)
    cut()
    # clothes
    shy=.60+.25*sst(.10,.75,bx.abs())+.22*(bx.abs()-.45).clamp_min(0)**1.5
    body=(shy-by)*.93
    crew=-ell(bx,by,torch.zeros_like(yaw),torch.full_like(yaw,.585),.235,.185); vee=-torch.maximum((bx.abs()*1.15+(by-.98))*.68,.4-by)
    kc=I["collar"]; g=lambda n:(kc==n).float()[:,None,None]
    hole=crew*(g(0)+g(3)+g(4))+vee*(g(1)+g(2))
    cl=torch.maximum(body,hole)
    cm=c.cov(cl); cs=I["cloth"]
    ccol=cs*(1-.16*sst(.1,.9,bx*i["light"].sign()+.2))[:,None]; ccol=ccol*(1-.22*torch.exp(-((bx.abs()-.62-.04*torch.sin(by*7))/.035)**2)*sst(.85,1.0,by))[:,None]
    c.paint(cm,ccol)
    rib=c.cov(hole.abs()-.020)*c.cov(body-.03); c.paint(rib*(g(0)+.0),cs*.80)
    c.paint(c.cov(hole.abs()-.016)*c.cov(body-.03)*g(1),cs*.82)
    # shirt collar flaps
    fl=torch.maximum(torch.maximum(bx.abs()*.55-(by-.545)*1.0,(by-.80)-.55*(.26-bx.abs())),bx.abs()*1.0-.29); fl=torch.maximum(fl,(.46-by)+.42*bx.abs()); fl=torch.maximum(fl,-((bx.abs()*1.15+(by-.93))*.68))
    c.paint(c.cov(fl-.01,1.5)*g(2)*.25,cs*.4); c.paint(c.cov(fl)*g(2),(cs*.55+.45))
    # turtleneck
    tn=torch.maximum((bx-.15*hx).abs()-(nw+.022),torch.maximum(.52-by-.03*(1-(bx/.2)**2),by-.80)); c.paint(c.cov(tn-.005)*g(3),cs*(.93-.10*torch.sin(bx*95.).clamp(-1,1)*.5)[:,None])
    # hood
    hd=torch.minimum(ell(bx,by,torch.zeros_like(yaw),torch.full_like(yaw,.62),.37,.25),torch.full_like(bx,9.)); hdm=torch.maximum(hd,crew-.0); hdm=torch.maximum(hdm,.50-by); c.paint(c.cov(hdm)*g(4),cs*.86); c.paint(c.cov(hdm.abs()-.006)*g(4)*.5,cs*.6)
    for sg in (-1.,1.):
        dr=torch.maximum((bx-sg*(.105+.02*(by-.8))).abs()-.011,torch.maximum(.78-by,by-.97)); c.paint(c.cov(dr)*g(4),(cs*.3+.66))
    cut()
    # ---------------- ears
    for sg in (-1.,1.):
        ex=sg*(Wd*.985)*torch.cos(yaw*.8)-yaw*.06; vis=1.0
        e=ell(x,y,ex-.0,.035-.10*pit,.064*(1-.5*sg*yaw).clamp(.4,1.3),.108); c.paint(c.cov(e),shade*.5+skin*.5)
        e2=ell(x,y,ex+sg*.006,.040-.10*pit,.034,.066); c.paint(c.cov(e2,3.)*.55,deep)
        er=ell(x,y,ex+sg*.012,.155-.10*pit,.020,.020); c.paint(c.cov(er)*i["earring"]*(1-(i["beard"]>.1).float()),torch.tensor([.96,.83,.46],device=dev)[None,:,None,None]*one)
    cut()
    # ---------------- head
    xs_=x-.045*yaw*sst(.0,.6,y)              # jaw follows the turn
    cran=ell(x,y,torch.zeros_like(yaw),torch.full_like(yaw,-.10),Wd,i["crH"])
    jw=ell(xs_,y,torch.zeros_like(yaw),.115+jd*.55,i["jawW"],i["chin"]-.115+jd*.45)
    head=smin(cran,jw,i["chinsq"]); hm=c.cov(head)
    # shading: soft directional light + rim occlusion
    lx=i["light"]; ds=sst(-.10,.62,(-xf*lx.sign()*(.55+.45*lx.abs()))+.28*yf+.02)
    base=skin*(1-ds)[:,None]+(shade*.62+skin*.38)*ds[:,None]
    rim=torch.exp(head.clamp(-1,0)/.055); base=base+((shade-base)*(.42*rim)[:,None])
    hl=gauss(xf,yf,.10*lx.sign(),-.24,.20,.12); base=base+((lite-base)*(.55*hl)[:,None])
    c.paint(hm,base)
    rose=torch.tensor([.93,.42,.40],device=dev)[None,:,None,None]*(.45+.55*lum)
    for sg in (-1.,1.):
        bl=gauss(xf,yf,sg*.235,.155-.01*m["smile"],.095,.065); c.paint(hm*bl*i["blush"]*.55,rose)
    # freckles
    fr=torch.sin(xf*97+3.1*torch.sin(yf*61))*torch.sin(yf*89+2.7*torch.sin(xf*71)); fz=(gauss(xf,yf,-.17,.10,.11,.05)+gauss(xf,yf,.17,.10,.11,.05)+.8*gauss(xf,yf,0.,.07,.07,.04)); c.paint(hm*sst(.72,.90,fr)*fz.clamp(0,1)*i["freck"]*.55,deep)
    cut()
    # ---------------- nose
    nx=xf-.055*torch.sin(yaw); ny=yf-.03*torch.sin(pit); nty=i["eye_y"]+i["nose_l"]+.035; nwd=i["nose_w"]
    side=gauss(nx,ny,-.034*lx.sign()-.03*torch.sin(yaw),nty-.075,.024,.085); c.paint(hm*side*.40,shade)
    und=gauss(nx,ny,torch.zeros_like(yaw),nty+.020,nwd*.95,.016); c.paint(hm*und*.62,shade*.5+deep*.5)
    tip=gauss(nx,ny,.010*lx.sign(),nty-.022,.026,.024); c.paint(hm*tip*.65,lite)
    for sg in (-1.,1.):
        ns=ell(nx,ny,sg*nwd*.50,nty+.012+0*yaw,.013,.0075); c.paint(hm*c.cov(ns,2.5)*.55,deep*.75)
        al=(ell(nx,ny,sg*nwd*.80,nty-.004+0*yaw,.026,.026).abs()-.003); c.paint(hm*c.cov(al,2.5)*sst(0.,.02,(nx*sg-nwd*.80))*.45,deep)
    cut()
    # ---------------- eyes
    blink=m["blink"].clamp(0,1); bmov=m["brow"]
    for sg in (-1.,1.):
        ex=xf-sg*i["eye_dx"]; ey=yf-i["eye_y"]; ey=ey+i["eye_tilt"]*sg*ex*1.0
        rx,ry=i["eye_rx"],i["eye_ry"]*(1+.14*bmov.clamp(-.7,1)-.20*m["smile"].clamp(0,1)); q=(1-(ex/rx)**2).clamp_min(0)
        qe=(1-((ex-sg*.010)/rx).clamp(-1,1)**2)
        upo=-ry*qe**.72; lwo=ry*.72*qe**.9
        up=upo+(lwo-upo)*(blink*.93); lw=lwo-(.10*ry)*blink
        eye=torch.maximum(torch.maximum(up-ey,ey-lw),ex.abs()-rx*.985)
        # socket shade + lid
        so=gauss(ex,ey,torch.zeros_like(yaw),-.012+0*yaw,rx*1.25,ry*1.35); c.paint(hm*so*.22,shade)
        lid=torch.maximum(torch.maximum((upo-.012)-ey,ey-(up+.004)),ex.abs()-rx*1.02); c.paint(hm*c.cov(lid)*sst(.02,.2,blink),shade*.40+skin*.60)
        em=c.cov(eye)*hm
        c.paint(em,torch.tensor([.985,.98,.975],device=dev)[None,:,None,None]*(.80+.20*lum))
        gx=ex-.034*m["gaze_x"]-.012*sg*0; gy=ey-.018*m["gaze_y"]; ir=torch.sqrt(gx*gx+gy*gy+1e-9); r0=i["iris_r"]
        im=em*c.cov(ir-r0); ig=(.62+.55*sst(-r0.min(),r0.max(),gy))[:,None]
        c.paint(im,(I["iris"]*ig).clamp(0,1)); c.paint(em*c.cov((ir-r0).abs()-.0035,2.)*.7,I["iris"]*.35)
        c.paint(em*c.cov(ir-r0*.47),one*.05)
        c.mul(em*sst(.030,.0,ey-up)*.55,one*.55)                       # lid shadow
        hlx=torch.sqrt((gx-.013*lx.sign())**2+(gy+.015)**2); c.paint(em*c.cov(hlx-.0105),one*.99); h2=torch.sqrt((gx+.014*lx.sign())**2+(gy-.014)**2); c.paint(em*c.cov(h2-.005)*.6,one*.95)
        # lashes: tapered stroke along the upper lid, slightly past the outer corner
        tt=((ex*sg)/rx); th=i["lash"]*(.35+.65*sst(-1.,.75,tt))*(1-.0*blink)
        ls=torch.maximum((ey-up).abs()-th*.5,torch.maximum(-tt-1.0,tt-1.07)*rx); lc=I["brow_c"]*.35
        c.paint(hm*c.cov(ls,1.4)*.95,lc)
        ll=torch.maximum((ey-lw).abs()-.0022,(tt.abs()-.80)*rx); c.paint(hm*c.cov(ll,1.6)*.40,deep*.7)
        cr_=torch.maximum((ey-(upo-.020)).abs()-.0025,(tt.abs()-.80)*rx); c.paint(hm*c.cov(cr_,1.8)*.42*(1-.5*blink),deep)
    cut()
    # ---------------- brows
    for sg in (-1.,1.):
        ex=(xf-sg*(i["eye_dx"]+.004))*sg; L=i["brow_len"]; u=ex/L
        yc=i["brow_y"]-.030*bmov+i["brow_arch"]*.020*(u-.25)**2+ .012*u*0 - .030*m["brow_tilt"]*(-u)*1.0 +.006*u
        th=i["brow_t"]*(1-.60*sst(-.2,1.,u))*(.75+.25*sst(-1.,-.6,u)); bd=torch.maximum((yf-yc).abs()-th*.62,(u.abs()-1)*L); c.paint(hm*c.cov(bd,2.2)*.92,I["brow_c"])
    # ---------------- mouth
    op=m["open"].clamp(0,1.2); rd=m["round"].clamp(0,1); wdv=m["width"].clamp(-1,1); pr=m["press"].clamp(0,1); ft=m["ftuck"].clamp(0,1); sm=(m["smile"]+.22*(1-.6*m["round"].clamp(0,1))).clamp(-1,1)
    mx=xf-.022*torch.sin(yaw); my=yf-i["mouth_y"]-.30*jd
    w=i["mouth_w"]*(1+.20*wdv+.14*sm.clamp(0,1)-.40*rd-.05*op); s1=(mx/w).clamp(-1,1); qq=(1-s1*s1)
    ap=.125*op*(1-.15*rd)                                   # aperture
    au=.34*ap+.002; al=.66*ap+.002+.25*jd*sst(0.,.3,op)
    bend=-.052*sm*(s1.abs()**1.8)+.014*sm; pw=.80-.28*rd
    yu=bend-au*qq**pw; yl=bend+al*qq**(pw*.95)
    yl=yl-.012*ft*qq
    w2=w*1.10+.006; s2=(mx/w2).clamp(-1,1); q2=(1-s2*s2); bend2=-.052*sm*(s2.abs()**1.8)+.014*sm
    tu=i["lip_u"]*(1+.45*rd)*(1-.55*pr)*(1-.18*sm.clamp(0,1)); tl=i["lip_l"]*(1+.45*rd)*(1-.50*pr)*(1-.50*ft)*(1-.15*sm.clamp(0,1))
    bow=1-.30*torch.exp(-(mx/(.17*w))**2)+.10*torch.exp(-((mx.abs()-.30*w)/(.22*w))**2)
    ou=bend2-(au+tu*bow)*q2**.72; ol=bend2+(al+tl-.012*ft)*q2**.62
    lipd=torch.maximum(torch.maximum(ou-my,my-ol),mx.abs()-w2); cav=torch.maximum(torch.maximum(yu-my,my-yl),mx.abs()-w)
    lipc=skin*(1-i["lip_red"].unsqueeze(1))*torch.tensor([.88,.68,.66],device=dev)[None,:,None,None]+i["lip_red"].unsqueeze(1)*(torch.tensor([.80,.33,.36],device=dev)[None,:,None,None]*(.35+.65*lum)+.12*skin)
    # soft shadow under lower lip, chin plane
    c.paint(hm*gauss(mx,my,torch.zeros_like(yaw),(al+tl+.030),w*.62,.022)*.50,shade)
    c.paint(hm*gauss(mx,yf,torch.zeros_like(yaw),i["chin"]-.085+jd*.9,.075,.045)*.30,lite)
    # smile folds
    for sg in (-1.,1.):
        fx=mx-sg*(w+.040+.010*op); fo=torch.maximum((fx-sg*.030*((my+.03)/.08)).abs()-.0025,(my+.035).abs()-.055); c.paint(hm*c.cov(fo,4.)*(.12+.40*sm.clamp(0,1)+.25*wdv.clamp(0,1)).clamp(0,.6),shade*.7+deep*.3)
    cut()
    # beard and moustache
    bz=sst(.0,.10,(yf-.06)-.40*(.30-xf.abs()).clamp(0,.3)*sst(.33,.18,xf.abs())+.02*torch.sin(xf*40)); 
    bb=torch.maximum(head-.004,.02-yf); inner=ell(mx,my,torch.zeros_like(yaw),(al-au)*.5+0*yaw,w2+.035,(au+al+tu+tl)*.5+.030); chk=ell(xf.abs(),yf,torch.full_like(yaw,.19),torch.full_like(yaw,.085),.155,.175)
    bd=torch.maximum(bb,torch.maximum(-inner,-chk)); bd=torch.maximum(bd,.09-yf-.35*(xf.abs()-.33).clamp_min(0)); c.paint(c.cov(bd,3.5)*i["beard"]*.90,I["brow_c"]*1.12)
    mo=torch.maximum((my-(ou-.018-.020*(1-s2.abs())+.055*s2.abs()**2.5)).abs()-.017*(1.15-s2.abs()),mx.abs()-w2*1.04); c.paint(hm*c.cov(mo,3.)*i["must"]*.92,I["brow_c"]*1.08)
    cut()
    lm=c.cov(lipd,1.2)
    lcol=lipc*(1-.16*sst(.004,-.004,my-(yu+yl)*.5))[:,None]
    c.paint(lm*.96,lcol); c.paint(lm*gauss(mx,my,.03*lx.sign(),al+tl*.50,w*.38,tl*.26+.003)*.42,(lipc*.45+.55))
    cv=c.cov(cav,1.0); depth=sst(.0,1.,(my-yu)/(yl-yu+.004))
    c.paint(cv,torch.tensor([.22,.055,.075],device=dev)[None,:,None,None]*(.75+.5*depth)[:,None])
    tg=m["tongue"].clamp(0,1); tn_=ell(mx,my,torch.zeros_like(yaw),yl.amax((1,2),keepdim=True)-.014-.55*tg*ap,w*.60,.030+.012*tg+.10*ap); c.paint(cv*c.cov(tn_,2.)*sst(.10,.28,op),torch.tensor([.80,.36,.38],device=dev)[None,:,None,None]*(.82+.18*sst(-.03,.03,-tn_))[:,None])
    te=m["teeth"].clamp(0,1); th=(.030+.014*te)*te; tw=w*.80; ut=torch.maximum((my-(yu.amin((1,2),keepdim=True)+th+.004+.014*s1*s1)),mx.abs()-tw); c.paint(cv*c.cov(ut,1.3)*sst(.0,.12,te),torch.tensor([.97,.955,.93],device=dev)[None,:,None,None]*(1-.22*s1*s1)[:,None])
    lt=torch.maximum(((yl.amax((1,2),keepdim=True)-.016*te-.010*s1*s1)-my),mx.abs()-tw*.85); c.paint(cv*c.cov(lt,1.5)*sst(.45,.9,te)*sst(.12,.3,op),torch.tensor([.90,.87,.85],device=dev)[None,:,None,None]*one)
    # F/V: upper teeth resting over the lower lip
    fv=torch.maximum(torch.maximum(yu-my,my-(yu+.004+.022*(1-(mx/(w*.55)).clamp(-1,1)**2)**.6)),mx.abs()-w*.55); c.paint(c.cov(fv,1.4)*ft*.95,torch.tensor([.96,.945,.92],device=dev)[None,:,None,None]*one)
    c.mul(cv*sst(.020,.0,my-yu)*.45,one*.45)                               # upper-lip shadow on teeth
    cm_=torch.maximum((my-bend).abs()-.0035,(mx.abs()-w*1.03)); 
    for sg in (-1.,1.): c.paint(hm*gauss(mx,my,sg*w*1.04,-.038*sm,.016,.014)*.30,deep)
    cut()
    # ---------------- glasses
    gl=torch.full_like(x,9.); gin=torch.full_like(x,9.)
    for sg in (-1.,1.):
        ge=xf-sg*(i["eye_dx"]+.006)-.02*torch.sin(yaw); gy=yf-i["eye_y"]-.014; gr=((ge/i["gl_rx"]).abs()**3.2+(gy/i["gl_ry"]).abs()**3.2+1e-9)**(1/3.2); gs=(gr-1)*i["gl_ry"]; gl=torch.minimum(gl,gs.abs()-.0085); gin=torch.minimum(gin,gs)
    br=torch.maximum((yf-i["eye_y"]+.012+.8*xf*xf).abs()-.007,(xf-.02*torch.sin(yaw)).abs()-(i["eye_dx"]+.006-i["gl_rx"]).clamp_min(.01)-.006); gl=torch.minimum(gl,br)
    arm=torch.maximum((yf-i["eye_y"]).abs()-.007,torch.maximum(i["eye_dx"]+i["gl_rx"]-xf.abs(),xf.abs()-R*.97)); gl=torch.minimum(gl,arm)
    glare=sst(.02,.0,(xf*.8+yf+.03).abs()-.018)*c.cov(gin); c.paint(hm*c.cov(gin)*i["glasses"]*.07,one); c.paint(glare*i["glasses"]*.10*hm,one)
    c.paint(c.cov(gl,1.2)*i["glasses"]*c.cov(head-.03),I["cloth2"]*.25+.06)
    cut()
    # ---------------- front hair
    vol=S(6); xt=x-.02*yaw
    scalp=ell(x,y,torch.zeros_like(yaw),-.115-vol*.62,Wd+vol*.62,i["crH"]+vol*.55)+.7*wave
    xl=xf.clamp(-.46,.46); u=xl-i["part"]; aa=torch.where(u<0,S(8),S(9)); hlin=S(7)+aa*(u.abs()+1e-6)**S(10)+S(11)*torch.sin(S(12)*xl+2.*torch.sin(5*xl))
    hd_=torch.maximum(scalp,(yf-hlin)*.80); hd_=torch.maximum(hd_,y-(.10+.42*(S(3)>0).float()))
    hmk=c.cov(hd_)*(S(6)>-.2).float()
    drop=torch.maximum(head,(yf-.030-hlin)*.8); c.paint(c.cov(drop,8.)*hm*(S(6)>-.2).float()*.30*(1-hmk),deep)     # hair casts a soft shadow on the forehead
    bun=ell(x,y,-.02-.25*yaw,-.70-.06*pit+0*yaw,.17,.15); c.paint(c.cov(bun)*S(13),hair*(.80+.25*sst(.1,-.1,bun))[:,None])
    rr=torch.sqrt(x*x+(y+.10)**2); strand=1+.085*S(14)*torch.sin(52*ang+7*torch.sin(4.*ang)+9*rr)+.05*torch.sin(23*ang-5*rr)
    spec=torch.exp(-((rr-.46+.03*torch.sin(9*ang))/.045)**2)*sst(.95,.2,(ang-.45*lx.sign()).abs())
    hc=hair*strand[:,None]*(.86+.20*sst(.3,-.6,y))[:,None]; hc=hc+(.22*spec*S(14))[:,None]*(.35+hair)
    c.paint(hmk,hc.clamp(0,1)); 
    # long hair in front of shoulders
    inn=Wd*(.985-.26*sst(-.05,.62,y))-.05*sst(.5,1.,y); lf=torch.maximum(smax(fall,ell(xb,y,torch.zeros_like(yaw),S(3)*.42-.02,brx*1.04,(S(3)*.5).clamp_min(.1)+.32),.10)+wave*.3,inn-(xb+.6*wl).abs()); lf=torch.maximum(lf,-.16-y)
    c.paint(c.cov(lf,1.2)*hasback*(S(3)>.2).float(),hair*(.86+.085*torch.sin(64*(xb+wl)+5*y)-.10*sst(.0,.06,-lf)*0)[:,None]); c.paint(c.cov((inn-(xb+.6*wl).abs()).abs()-.004,3.)*c.cov(lf-.01)*hasback*(S(3)>.2).float()*.35,hair*.45)
    # ---------------- finish: gentle grade
    vg=1-.10*(X*X+Y*Y).clamp(0,2)**1.5*.5; img=(c.img*vg[:,None]).clamp(0,1)
    aux={"mouth_xy":torch.stack([(hx+sc*(R*torch.sin(torch.asin((0*yaw)/R)+yaw)*.45)).flatten(),(hy+sc*(i["mouth_y"]+.3*jd)).flatten()],1),"aperture":(au+al).flatten(),
         "eyes":torch.stack([torch.stack([(hx+sc*R*torch.sin(torch.asin(sg*i["eye_dx"]/R)+yaw)).flatten(),(hy+sc*(i["eye_y"]+.62*torch.sin(pit))).flatten()],1) for sg in (-1.,1.)],1)}
    return img,aux
