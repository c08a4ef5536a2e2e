package network

import (
	"sync/atomic"

	"github.com/smolvmm/smolvmm/netstack"
)

// late is a stack that is being made beside the machine: half a millisecond of
// a start that takes three. It is a Backend from the first moment, as the device
// asks it for nothing but the MTU until late in the machine's making.
type late struct {
	mtu   int
	done  chan struct{}
	stack atomic.Pointer[netstack.Stack] // nil until done, and where err is not nil
	err   error                          // read it after done
}

// newLate begins to make a stack.
func newLate(c netstack.Config) *late {
	l := &late{mtu: c.MTU, done: make(chan struct{})}
	if l.mtu == 0 {
		l.mtu = netstack.DefaultMTU
	}
	go func() {
		defer close(l.done)
		s, err := netstack.New(c)
		if err != nil {
			l.err = err
			return
		}
		l.stack.Store(s)
	}()
	return l
}

// wait gives the stack, or nil where it could not be made: err says why.
func (l *late) wait() *netstack.Stack {
	if s := l.stack.Load(); s != nil {
		return s
	}
	<-l.done
	return l.stack.Load()
}

func (l *late) Close() error {
	if s := l.wait(); s != nil {
		return s.Close()
	}
	return nil
}

// The Backend. A stack that could not be made has no machine: Created says so
// before the guest runs, so that these need to harm nobody only.

func (l *late) MTU() int { return l.mtu }

func (l *late) Offloads() uint64 {
	if s := l.wait(); s != nil {
		return s.Offloads()
	}
	return 0
}

func (l *late) Negotiated(offloads uint64) {
	if s := l.wait(); s != nil {
		s.Negotiated(offloads)
	}
}

func (l *late) Send(h *[12]byte, frame [][]byte) {
	if s := l.wait(); s != nil {
		s.Send(h, frame)
	}
}

func (l *late) Next() (h *[12]byte, frame [][]byte, ok bool) {
	if s := l.wait(); s != nil {
		return s.Next()
	}
	return nil, nil, false
}

func (l *late) Pop() {
	if s := l.wait(); s != nil {
		s.Pop()
	}
}

func (l *late) OnReady(wake func()) {
	if s := l.wait(); s != nil {
		s.OnReady(wake)
	}
}
