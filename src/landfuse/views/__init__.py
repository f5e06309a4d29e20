"""Where pixels become tensors: pixel maps, reading and mapping windows, the store that samples are gathered from."""
