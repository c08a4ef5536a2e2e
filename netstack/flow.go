package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// maxPending is how many datagrams of a new flow wait for its socket.
	maxPending = 16
	// echoIdle is for how long a ping's answer is waited for.
	echoIdle = 30 * time.Second
)

// flowKey names a flow: for UDP both ends, for echo the identifier as the port.
type flowKey struct {
	proto    uint8
	src, dst netip.AddrPort
}

// flowTable has the guest's UDP flows and pings. Each has a socket of the host's,
// connected, so that the host's kernel tells of what ICMP says about it.
type flowTable struct {
	s   *Stack
	dns chan struct{} // a place for each query under way

	mu     sync.Mutex
	flows  map[flowKey]*flow
	closed bool
}

type flow struct {
	t    *flowTable
	key  flowKey
	idle time.Duration
	last atomic.Int64 // when it was used, Unix nanoseconds

	began     time.Time
	sent, got atomic.Uint64 // payload bytes of the guest's, and for it

	gone context.Context
	end  context.CancelFunc

	mu      sync.Mutex
	conn    net.Conn // nil until the socket is there
	raw     syscall.RawConn
	out     chan []byte // to a connection without a descriptor, whose Write may block
	pending []datagram
	dontFrg int8   // 1 and -1: as the socket is set; 0: it is not
	quote   []byte // the last packet's beginning, for errors about it
	id      [2]byte
}

// datagram is one that waits for its flow's socket.
type datagram struct {
	payload []byte
	dontFrg bool
}

func (t *flowTable) init(s *Stack) {
	t.s = s
	t.flows = map[flowKey]*flow{}
	t.dns = make(chan struct{}, maxDNS)
}

func (t *flowTable) lookup(key flowKey) *flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.flows[key]
}

// open makes a flow; where there are too many, the one idle longest goes.
func (t *flowTable) open(key flowKey, addr string, idle time.Duration) *flow {
	s := t.s
	// Those that had to go keep their socket until their goroutine has run.
	if s.stats.flows.Load() >= 2*int64(s.cfg.Limits.Flows) {
		s.stats.overLimit.Add(1)
		return nil
	}
	if !s.enter() {
		return nil
	}
	f := &flow{t: t, key: key, idle: idle, began: time.Now()}
	f.last.Store(f.began.UnixNano())
	f.gone, f.end = context.WithCancel(s.ctx)
	t.mu.Lock()
	if old := t.flows[key]; old != nil || t.closed { // by another queue's Send meanwhile
		t.mu.Unlock()
		f.end()
		s.wg.Done()
		return old
	}
	var oldest *flow
	if len(t.flows) >= s.cfg.Limits.Flows {
		for _, o := range t.flows {
			if oldest == nil || o.last.Load() < oldest.last.Load() {
				oldest = o
			}
		}
		delete(t.flows, oldest.key)
	}
	t.flows[key] = f
	t.mu.Unlock()
	if oldest != nil {
		s.stats.expired.Add(1)
		oldest.close()
	}
	s.stats.flowsTotal.Add(1)
	s.stats.flows.Add(1)
	go f.run(addr)
	return f
}

// close ends a flow: its goroutine then returns.
func (f *flow) close() {
	f.end()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn != nil {
		_ = f.conn.Close()
	}
}

func (t *flowTable) closeAll() {
	t.mu.Lock()
	t.closed = true
	flows := t.flows
	t.flows = map[flowKey]*flow{}
	t.mu.Unlock()
	for _, f := range flows {
		f.close()
	}
}

// run is the life of a flow: it opens the socket, and reads from it.
func (f *flow) run(addr string) {
	s := f.t.s
	defer s.wg.Done()
	defer s.stats.flows.Add(-1)
	defer func() {
		f.t.mu.Lock()
		if f.t.flows[f.key] == f {
			delete(f.t.flows, f.key)
		}
		f.t.mu.Unlock()
		f.close()
	}()
	conn, err := f.connect(addr)
	if err != nil {
		f.tell(err)
		return
	}
	f.mu.Lock()
	if f.gone.Err() != nil {
		f.mu.Unlock()
		_ = conn.Close()
		return
	}
	f.conn = conn
	if c, ok := conn.(syscall.Conn); ok {
		if raw, rerr := c.SyscallConn(); rerr == nil {
			f.raw = raw
		}
	}
	if f.raw == nil && s.enter() {
		f.out = make(chan []byte, maxPending)
		go f.writeOut(conn)
	}
	pending := f.pending
	f.pending = nil
	for _, p := range pending {
		f.write(p.payload, p.dontFrg)
	}
	f.mu.Unlock()
	f.read(conn)
}

func (f *flow) connect(addr string) (net.Conn, error) {
	if f.key.proto == protoUDP {
		return f.t.s.cfg.Dial(f.gone, "udp", addr)
	}
	return f.t.s.cfg.Ping(f.gone, f.key.dst.Addr())
}

// send takes a datagram of the guest's; payload is the caller's again afterwards.
func (f *flow) send(payload []byte, dontFrg bool, pkt *stack.PacketBuffer) {
	f.last.Store(time.Now().UnixNano())
	f.mu.Lock()
	defer f.mu.Unlock()
	n, t := pkt.NetworkHeader().Slice(), pkt.TransportHeader().Slice()
	f.quote = append(append(f.quote[:0], n...), t[:min(len(t), maxQuote)]...)
	f.write(payload, dontFrg)
}

// write writes, or keeps a copy until there is a socket. f.mu is held.
func (f *flow) write(payload []byte, dontFrg bool) {
	if f.conn == nil {
		if len(f.pending) < maxPending && f.gone.Err() == nil {
			f.pending = append(f.pending, datagram{append([]byte(nil), payload...), dontFrg})
		} else {
			f.t.s.stats.flowDrops.Add(1)
		}
		return
	}
	want := int8(-1)
	if dontFrg {
		want = 1
	}
	if f.raw != nil && f.dontFrg != want {
		f.dontFrg = want
		_ = f.raw.Control(func(fd uintptr) { setDontFragment(int(fd), f.key.dst.Addr(), dontFrg) })
	}
	f.writeNow(payload)
}

// writeNow writes one datagram, without waiting where the connection has a
// descriptor. f.mu is held.
func (f *flow) writeNow(payload []byte) {
	s := f.t.s
	// An error of an earlier datagram's is reported instead of sending this one.
	for range 2 {
		err := f.writeOnce(payload)
		switch {
		case err == nil:
			f.sent.Add(uint64(len(payload)))
			return
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS):
			s.stats.flowDrops.Add(1)
			return
		case errors.Is(err, unix.EMSGSIZE):
			s.tooBig(protocolOf(f.key.dst.Addr()), f.quote, f.pathMTU())
			return
		}
		f.tellLocked(err)
		if !errors.Is(err, unix.ECONNREFUSED) {
			return
		}
	}
}

func (f *flow) writeOnce(payload []byte) error {
	if f.raw == nil {
		select {
		case f.out <- append([]byte(nil), payload...):
			return nil
		default:
			return unix.EAGAIN
		}
	}
	var err error
	rerr := f.raw.Write(func(fd uintptr) bool {
		_, err = unix.Write(int(fd), payload)
		return true
	})
	if rerr != nil {
		return rerr
	}
	return err
}

// writeOut writes what a flow has for a connection that may block.
func (f *flow) writeOut(conn net.Conn) {
	defer f.t.s.wg.Done()
	for {
		select {
		case b := <-f.out:
			if _, err := conn.Write(b); err != nil && !f.tell(err) {
				f.close()
				return
			}
		case <-f.gone.Done():
			return
		}
	}
}

// read passes on what comes back until the flow is idle or closed. A buffer is
// held only while there is something in it.
func (f *flow) read(conn net.Conn) {
	s := f.t.s
	for {
		last := time.Unix(0, f.last.Load())
		_ = conn.SetReadDeadline(last.Add(f.idle))
		buf, n, err := f.readOnce(conn)
		switch {
		case err == nil:
			f.last.Store(time.Now().UnixNano())
			f.got.Add(uint64(n))
			f.deliver((*buf)[:n])
		case errors.Is(err, os.ErrDeadlineExceeded):
			if time.Since(time.Unix(0, f.last.Load())) >= f.idle {
				s.stats.expired.Add(1)
				return
			}
		case f.gone.Err() != nil, errors.Is(err, net.ErrClosed):
			return
		default:
			if !f.tell(err) {
				return
			}
		}
		if buf != nil {
			s.buffers.put(buf)
		}
	}
}

func (f *flow) readOnce(conn net.Conn) (buf *[]byte, n int, err error) {
	if f.raw == nil {
		buf = f.t.s.buffers.get(false)
		n, err = conn.Read(*buf)
		return buf, n, err
	}
	rerr := f.raw.Read(func(fd uintptr) bool {
		buf = f.t.s.buffers.get(false)
		n, err = unix.Read(int(fd), *buf)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			f.t.s.buffers.put(buf)
			buf = nil
			return false
		}
		return true
	})
	if rerr != nil {
		return buf, 0, rerr
	}
	return buf, n, err
}

// deliver passes an answer to the guest.
func (f *flow) deliver(b []byte) {
	from, to := tcpip.AddrFromSlice(f.key.dst.Addr().AsSlice()), tcpip.AddrFromSlice(f.key.src.Addr().AsSlice())
	if f.key.proto == protoUDP {
		f.t.s.sendUDP(from, to, f.key.dst.Port(), f.key.src.Port(), protocolOf(f.key.dst.Addr()), b)
		return
	}
	f.t.s.deliverEcho(f, from, to, b)
}

// tell passes an error of the host's socket to the guest; false means that the
// socket is of no more use.
func (f *flow) tell(err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tellLocked(err)
}

func (f *flow) tellLocked(err error) bool {
	s := f.t.s
	proto := protocolOf(f.key.dst.Addr())
	if errors.Is(err, syscall.ECONNREFUSED) {
		s.stats.refused.Add(1)
		s.unreachable(proto, f.quote, unreachPort)
		return true
	}
	if f.key.proto != protoUDP && f.conn == nil && (errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM)) {
		s.stats.pingForbidden.Add(1)
		return false
	}
	if why, ok := whyUnreachable(err); ok {
		s.stats.unreachable.Add(1)
		s.unreachable(proto, f.quote, why)
		return true
	}
	if errors.Is(err, syscall.EMSGSIZE) {
		s.tooBig(proto, f.quote, f.pathMTU())
		return true
	}
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		s.stats.overLimit.Add(1)
		s.cfg.Log.Warn("the host has nothing left for a flow of the guest's", "to", f.key.dst, "err", err)
	}
	return false
}

// pathMTU is what the host knows of the way to the destination. f.mu is held.
func (f *flow) pathMTU() uint32 {
	mtu := f.t.s.cfg.MTU
	if f.raw != nil {
		_ = f.raw.Control(func(fd uintptr) {
			level, opt := unix.IPPROTO_IP, unix.IP_MTU
			if f.key.dst.Addr().Is6() {
				level, opt = unix.IPPROTO_IPV6, unix.IPV6_MTU
			}
			if n, err := unix.GetsockoptInt(int(fd), level, opt); err == nil && n > 0 {
				mtu = min(mtu, n)
			}
		})
	}
	return uint32(mtu)
}

// setDontFragment has the host treat a flow's datagrams as the guest asked.
func setDontFragment(fd int, dst netip.Addr, on bool) {
	if dst.Is4() {
		v := unix.IP_PMTUDISC_WANT
		if on {
			v = unix.IP_PMTUDISC_DO
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, v)
		return
	}
	v := unix.IPV6_PMTUDISC_WANT
	if on {
		v = unix.IPV6_PMTUDISC_DO
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, v)
}
