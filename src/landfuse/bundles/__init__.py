"""What is saved: pixel maps, model, legend and calibration as one bundle, and its files."""
