"""The only package that knows ROS: nodes, parameters, messages, arm controllers."""
