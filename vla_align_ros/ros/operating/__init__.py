"""What a person at a terminal or a joystick uses: say, operator_console, stop_arm, joystick_stop."""
