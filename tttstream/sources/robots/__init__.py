"""Recordings of robots: ROS 2 bags and LeRobot data sets."""
