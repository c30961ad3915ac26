"""What each client frame does: one small function a frame type. Which is whose is the table in `routing.py`.

Every function gets the desk, the session that asked and the frame that was read, and answers by `session.send`. What it raises
becomes an `ack ok:false` with the error's code. No SQL here, and no frames made by hand.
"""
