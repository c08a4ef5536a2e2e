package vsock

import (
	"errors"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/smolvmm/smolvmm/devices/vsock/vsocktest"
)

// fakeHost is a host's side in memory, whose every reaction a test decides.
type fakeHost struct {
	mu      sync.Mutex
	wake    func()
	events  []Event
	ports   []uint32 // that somebody listens on
	streams []*fakeStream
	room    int // what a new stream takes at first; less than 0: everything
}

// fakeStream is a connection of its.
type fakeStream struct {
	Hook
	h           *fakeHost
	guest, host uint32
	opened      bool
	in          []byte // for the guest
	eof, gone   bool
	deaf        bool
	room        int
	got         []byte // from the guest
	shutR       bool
	shutW       bool
	closed      bool
	reads       int
}

func (h *fakeHost) Open(guest, host uint32) (Stream, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Contains(h.ports, host) {
		return nil, errors.New("nobody")
	}
	s := &fakeStream{h: h, guest: guest, host: host, opened: true, room: h.room}
	h.streams = append(h.streams, s)
	return s, nil
}

func (h *fakeHost) Next() (Event, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.events) == 0 {
		return Event{}, false
	}
	e := h.events[0]
	h.events = h.events[1:]
	return e, true
}

func (h *fakeHost) OnReady(wake func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.wake = wake; wake != nil {
		wake()
	}
}

// tell has an event for the device. The caller holds mu.
func (h *fakeHost) tell(e Event) {
	h.events = append(h.events, e)
	if h.wake != nil {
		h.wake()
	}
}

// call begins a connection to the guest.
func (h *fakeHost) call(port uint32) *fakeStream {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &fakeStream{h: h, guest: port, room: h.room}
	h.streams = append(h.streams, s)
	h.tell(Event{Stream: s, Call: true, Port: port})
	return s
}

// last is the newest stream.
func (h *fakeHost) last() *fakeStream {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.streams[len(h.streams)-1]
}

// do changes a stream, and has the device told.
func (s *fakeStream) do(f func()) {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	f()
	s.h.tell(Event{Stream: s, Readable: true, Writable: true})
}

// see looks at a stream.
func (s *fakeStream) see(f func() bool) bool {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	return f()
}

func (s *fakeStream) send(p []byte) { s.do(func() { s.in = append(s.in, p...) }) }

func (s *fakeStream) Opened(port uint32) {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	s.opened, s.host = true, port
}

func (s *fakeStream) Read(runs [][]byte) (n int, more bool, err error) {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	s.reads++
	for _, b := range runs {
		k := copy(b, s.in)
		s.in, n = s.in[k:], n+k
	}
	if n == 0 && s.eof {
		return 0, false, io.EOF
	}
	return n, len(s.in) > 0 || s.eof, nil
}

func (s *fakeStream) Write(runs [][]byte) (n int, err error) {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	if s.deaf || s.gone {
		return 0, errors.New("EPIPE")
	}
	for _, b := range runs {
		if s.room >= 0 {
			b = b[:min(len(b), s.room)]
			s.room -= len(b)
		}
		s.got = append(s.got, b...)
		n += len(b)
	}
	return n, nil
}

func (s *fakeStream) Gone() bool  { return s.see(func() bool { return s.gone }) }
func (s *fakeStream) CloseRead()  { s.see(func() bool { s.shutR = true; return true }) }
func (s *fakeStream) CloseWrite() { s.see(func() bool { s.shutW = true; return true }) }
func (s *fakeStream) Close()      { s.see(func() bool { s.closed = true; return true }) }

const listened = 80

// rig is a device between a fake host and a guest.
type rig struct {
	*vsocktest.Guest
	t testing.TB
	h *fakeHost
	d *Device
}

func newRig(t testing.TB, o vsocktest.Options) *rig {
	t.Helper()
	r := &rig{t: t, h: &fakeHost{ports: []uint32{listened}, room: -1}}
	var err error
	if r.d, err = New(Config{CID: 3, Host: r.h}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.d.Close() })
	if o.Features == 0 {
		o.Features = ^uint64(0)
	}
	r.Guest = vsocktest.New(t, r.d, o)
	return r
}

// open is a connection of the guest's with its end on the host's side.
func (r *rig) open(port uint32) (*vsocktest.Conn, *fakeStream) {
	r.t.Helper()
	c := r.Dial(port, listened)
	if c.Reset {
		r.t.Fatal("refused")
	}
	return c, r.h.last()
}

// check fails unless f holds of a stream.
func (r *rig) check(s *fakeStream, what string, f func() bool) {
	r.t.Helper()
	if !s.see(f) {
		r.t.Errorf("%s: %+v", what, s)
	}
}

// set says what streams made from now on take at first.
func (h *fakeHost) set(room int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.room = room
}
