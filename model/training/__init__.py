"""How the tiny checkpoint is made: renderer, speech, stages. Imported only by `avatarcast train` and `portrait`."""
