"""What a person at a terminal or a joystick uses beside a running policy."""
