"""The ROS side of `vla-align bench`: camera, policy under test, naive node, and who measures."""
