package vsock

// reply is an RST for who has no connection.
type reply struct {
	cid         uint64 // as which it is sent
	guest, host uint32
	typ         uint16
}

// replies are RSTs that wait for receive buffers. When there are too many, nothing
// more is taken from the guest: a flood of questions without buffers for answers
// grows nothing (VirtIO 1.2 §5.10.6.1 lets a device stop then).
type replies struct {
	ring    [64]reply
	head, n int
}

func (q *replies) full() bool { return q.n == len(q.ring) }

// put adds a reply; the caller has seen to it that there is room.
func (q *replies) put(r reply) {
	if q.full() {
		return
	}
	q.ring[(q.head+q.n)%len(q.ring)] = r
	q.n++
}

// first gives the oldest; nil: there is none.
func (q *replies) first() *reply {
	if q.n == 0 {
		return nil
	}
	return &q.ring[q.head]
}

func (q *replies) drop() {
	q.head = (q.head + 1) % len(q.ring)
	q.n--
}
