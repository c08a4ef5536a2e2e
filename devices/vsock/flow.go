package vsock

// flow is the credit of one connection (VirtIO 1.2 §5.10.6.3), which is counted in
// bytes modulo 2^32. It is pure: numbers in, numbers out.
type flow struct {
	// The guest sends: it may have alloc bytes on the way to the host.
	alloc uint32 // our buf_alloc, for the connection's life
	got   uint32 // bytes taken in
	fwd   uint32 // of these, what the host has taken: our fwd_cnt
	told  uint32 // fwd as the guest last heard it

	// The host sends: what the guest says of itself.
	sent      uint32 // bytes given to the guest
	peerAlloc uint32
	peerFwd   uint32
}

// hear takes in what the guest says about its buffer.
func (f *flow) hear(alloc, fwd uint32) { f.peerAlloc, f.peerFwd = alloc, fwd }

// room is how many bytes the guest takes now. A guest that says it has read what
// was never sent gets nothing.
func (f *flow) room() uint32 {
	if onWay := f.sent - f.peerFwd; onWay < f.peerAlloc {
		return f.peerAlloc - onWay
	}
	return 0
}

// send counts n bytes given to the guest.
func (f *flow) send(n uint32) { f.sent += n }

// take counts n bytes from the guest; false is a violation of its credit.
func (f *flow) take(n uint32) bool {
	// waiting never exceeds alloc, so that nothing wraps. The credit is what we
	// gave, told or not: what we hold is bounded by it all the same.
	if waiting := f.got - f.fwd; n > f.alloc-waiting {
		return false
	}
	f.got += n
	return true
}

// waiting is how many bytes the host has not taken yet.
func (f *flow) waiting() uint32 { return f.got - f.fwd }

// forward counts n bytes that the host has taken.
func (f *flow) forward(n uint32) { f.fwd += n }

// due says whether the guest should hear of its credit: a quarter of it is free
// that it does not know of. Any packet tells it.
func (f *flow) due() bool { return f.fwd-f.told >= f.alloc/4 }
