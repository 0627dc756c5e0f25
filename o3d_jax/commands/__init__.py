"""One thin file for each command of `o3d`; `__main__.py` lists them. Nothing else imports these."""
