package vsock

import "time"

const (
	// MaxConnections bounds the connections of one guest: 1,000 and some that
	// are on their way out. Each can take a descriptor of the host's.
	MaxConnections = 1024

	// allocLarge is the buffer in bytes that each of the first largeConns
	// connections promises to its guest, which is Linux's own for a socket;
	// allocSmall is that of the others. Together they bound what slow hosts can
	// make the monitor hold: 32 MiB and 28 MiB.
	allocLarge = 256 << 10
	allocSmall = 32 << 10
	largeConns = 128

	// firstHostPort is where ports of the host's are taken from, for
	// connections that it begins: the upper half of the lower half, as
	// Firecracker's are, out of the way of what people choose.
	firstHostPort = 1 << 30
	hostPorts     = 1 << 30

	// callPatience is how long a guest may take to answer a call (its driver
	// does, not the program: Linux gives up after 2 s itself), closePatience
	// how long to confirm an end (VirtIO 1.2 §5.10.6.5).
	callPatience  = 2 * time.Second
	closePatience = 8 * time.Second
)

// state is where a connection stands.
type state uint8

const (
	none    state = iota // there is none
	calling              // the host calls: REQUEST is under way, or was sent
	open
	closing // we have sent SHUTDOWN both ways, and wait for RST
	dying   // RST is under way: the stream is gone
	states
)

// action is what a packet of the guest's brings about.
type action uint8

const (
	ignore  action = iota
	refuse         // RST to who has no connection
	accept         // the guest connects
	answer         // the guest takes our call
	data           // bytes for the host
	shut           // the guest closes a half or both
	credit         // it has said its credit in the header
	tell           // it wants to know ours
	discard        // bytes for a host that is gone
	gone           // the guest has ended the connection
	reset          // it broke the rules: RST, and the stream is closed
)

// actions is what each packet does in each state (VirtIO 1.2 §5.10.6.4, §5.10.6.5).
// RST is never answered, so that none goes round.
var actions = [states][ops]action{
	none: {refuse, accept, refuse, ignore, refuse, refuse, refuse, refuse},
	// Between REQUEST and RESPONSE there is nothing else to say.
	calling: {reset, reset, answer, gone, reset, reset, reset, reset},
	// REQUEST: the guest has forgotten the connection, and takes the port again.
	open: {reset, reset, reset, gone, shut, data, credit, tell},
	// What was on its way when we closed is nobody's any more.
	closing: {reset, reset, ignore, gone, shut, discard, credit, tell},
	dying:   {ignore, ignore, ignore, gone, ignore, ignore, ignore, ignore},
}

// judge gives the action of a packet.
func (s state) judge(op uint16) action {
	if op >= ops {
		op = 0 // as an operation that nobody knows
	}
	return actions[s][op]
}

// key is a connection's two ports. CIDs are always the same.
type key struct{ guest, host uint32 }

// conn is one connection.
type conn struct {
	flow
	key
	state  state
	stream Stream // nil when dying
	large  bool   // alloc is allocLarge

	guestShut uint32 // SHUTDOWN flags of the guest's
	hostShut  uint32 // ours, sent or to be sent

	// To be sent, in this order: RST, REQUEST, RESPONSE, SHUTDOWN, credit.
	request, response, shutdown, update bool
	demanded                            bool // CREDIT_REQUEST is out, and no answer
	ended                               bool // the host sends no more, and its bytes are all out

	readable bool // the stream has given bytes, or not been read yet
	out      ring // the guest's bytes that the host has not taken
	deadline time.Time

	next, prev *conn // in the list of those with something to send
	listed     bool
}

// table holds the connections. It is pure: it knows neither queues nor streams.
type table struct {
	conns    map[key]*conn
	large    int // of them with allocLarge
	lastPort uint32
	ready    list
}

func newTable() *table { return &table{conns: map[key]*conn{}} }

// find gives a connection, or nil.
func (t *table) find(k key) *conn { return t.conns[k] }

// add makes a connection; nil: there are too many.
func (t *table) add(k key, s state) *conn {
	if len(t.conns) >= MaxConnections {
		return nil
	}
	c := &conn{key: k, state: s}
	c.alloc = allocSmall
	if t.large < largeConns {
		t.large++
		c.large, c.alloc = true, allocLarge
	}
	t.conns[k] = c
	return c
}

// call makes a connection that the host begins, on a port of the host's that no
// connection has; nil: there are too many.
func (t *table) call(guestPort uint32) *conn {
	// There are more ports than connections, so the search ends.
	for len(t.conns) < MaxConnections {
		k := key{guestPort, firstHostPort + t.lastPort}
		t.lastPort = (t.lastPort + 1) % hostPorts
		if t.find(k) == nil {
			return t.add(k, calling)
		}
	}
	return nil
}

// remove forgets a connection.
func (t *table) remove(c *conn) {
	if t.conns[c.key] != c {
		return
	}
	if c.large {
		t.large--
	}
	t.ready.remove(c)
	delete(t.conns, c.key)
}

// list is a queue of connections, in which each is at most once: linked, so that
// one that is gone is out of it at once and the rest keeps its turn.
type list struct{ first, last *conn }

func (l *list) push(c *conn) {
	if c.listed {
		return
	}
	c.listed, c.prev, c.next = true, l.last, nil
	if l.last != nil {
		l.last.next = c
	} else {
		l.first = c
	}
	l.last = c
}

func (l *list) remove(c *conn) {
	if !c.listed {
		return
	}
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		l.first = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		l.last = c.prev
	}
	c.listed, c.prev, c.next = false, nil, nil
}

// ring is a queue of bytes that grows to what is asked of it, which credit bounds.
type ring struct {
	buf    []byte
	off, n int
}

const ringFirst = 4 << 10 // bytes of the first buffer

// put appends runs.
func (r *ring) put(runs [][]byte) {
	total := 0
	for _, b := range runs {
		total += len(b)
	}
	r.grow(r.n + total)
	for _, b := range runs {
		for len(b) > 0 {
			at := r.off + r.n
			if at >= len(r.buf) {
				at -= len(r.buf)
			}
			end := len(r.buf)
			if at < r.off {
				end = r.off
			}
			k := copy(r.buf[at:end], b)
			b, r.n = b[k:], r.n+k
		}
	}
}

func (r *ring) grow(n int) {
	if n <= len(r.buf) {
		return
	}
	size := max(ringFirst, len(r.buf))
	for size < n {
		size *= 2
	}
	b := make([]byte, size)
	k := 0
	for _, run := range r.runs(nil) {
		k += copy(b[k:], run)
	}
	r.buf, r.off = b, 0
}

// runs appends what is in the ring to dst, in order.
func (r *ring) runs(dst [][]byte) [][]byte {
	if r.n == 0 {
		return dst
	}
	end := r.off + r.n
	if end <= len(r.buf) {
		return append(dst, r.buf[r.off:end])
	}
	return append(dst, r.buf[r.off:], r.buf[:end-len(r.buf)])
}

// drop takes n bytes off the front.
func (r *ring) drop(n int) {
	r.n -= n
	if r.n == 0 {
		r.off = 0
		return
	}
	if r.off += n; r.off >= len(r.buf) {
		r.off -= len(r.buf)
	}
}
