package stats

// Sample does at once what Run does now and then.
func (r *Reader) Sample() { r.sample() }
