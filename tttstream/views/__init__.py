"""What a person sees of a stream: the overlay, the video, the chart, the window. Import the module you need."""
