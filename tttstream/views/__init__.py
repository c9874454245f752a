"""Views of a stream for people: the overlay, the video, the chart, the window. Import the module you need."""
