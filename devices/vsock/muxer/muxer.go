// Package muxer is the host's side of a VirtIO socket device over Unix sockets, by
// Firecracker's convention (its docs/vsock.md): who wants to reach a port of the
// guest's connects to one socket and writes "CONNECT port\n", upon which it reads
// "OK port\n", the host's port, and has the connection; what the guest connects to on
// port P of the host reaches the socket of the same name with "_P" behind. Programs that
// have the machine in their own process take Dial and Listen, which use no descriptor.
//
// All sockets are in one epoll set, which the Go runtime's poller waits for: one
// goroutine serves a thousand connections. The package stands on system calls since
// package net would come with it into every program that embeds a machine.
package muxer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/devices/vsock"
)

const (
	// maxPath is what sockaddr_un holds besides its NUL (unix(7)), in bytes.
	maxPath = 107

	// backlog is how many of the guest's connections may wait for Accept, and how many
	// clients are accepted at a time; waiting is how many of those may wait for that.
	backlog = 128
	waiting = 1024

	// maxSockets bounds the descriptors: a connection each, and those who have
	// not said yet what they want.
	maxSockets = vsock.MaxConnections + maxGreeting
	// maxGreeting bounds the latter. Beyond it the oldest has to go, so that
	// who says nothing keeps nobody out.
	maxGreeting = 128
	// greetPatience is how long a client has for its line.
	greetPatience = 5 * time.Second

	// acceptPause is how long a listener that failed is left alone.
	acceptPause = 100 * time.Millisecond
)

// Config is what a Muxer is made of. The zero value serves Dial and Listen only.
type Config struct {
	// Path is where clients connect, and without its port's number where the
	// guest's connections lead.
	Path string
	// Listener is an open Unix socket that listens at Path; it is taken over,
	// and its file stays. nil: the Muxer makes one, for this user alone, and
	// removes it when it is closed. One that nobody listens on any more is replaced.
	Listener *os.File
}

// Muxer connects a device to sockets and to this process. It is a vsock.Host.
type Muxer struct {
	path  string
	epoll *os.File
	epfd  int           // of epoll
	ended chan struct{} // closed when poll has returned

	mu        sync.Mutex
	closed    bool
	wake      func()
	first     *source // those with news, in order
	last      *source
	listener  int    // descriptor; -1: none
	inode     uint64 // of the file that Close removes; 0: none
	paused    bool   // nobody is accepted: there are too many
	sockets   map[uint64]*socket
	nextID    uint64
	greeting  []*socket // in the order they came
	greetings *time.Timer
	ports     map[uint32]*Listener
}

var _ vsock.Host = (*Muxer)(nil)

// listenerID is the listener's in the epoll set.
const listenerID = 0

// New makes a Muxer; clients are accepted from now on, and wait for the guest.
func New(c Config) (_ *Muxer, err error) {
	m := &Muxer{path: c.Path, listener: -1, sockets: map[uint64]*socket{}, nextID: listenerID + 1, ports: map[uint32]*Listener{}, ended: make(chan struct{})}
	if c.Path == "" && c.Listener == nil {
		close(m.ended)
		return m, nil
	}
	defer func() {
		if err != nil {
			m.discard()
			if m.epoll != nil {
				m.epoll.Close()
			}
		}
	}()
	if c.Listener != nil {
		if m.listener, err = takeOver(c.Listener); err != nil {
			return nil, fmt.Errorf("vsock socket %s: %w", c.Path, err)
		}
	} else if m.listener, m.inode, err = listen(c.Path); err != nil {
		return nil, fmt.Errorf("vsock socket %s: %w", c.Path, err)
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	// The runtime's poller takes what does not block.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	m.epfd, m.epoll = fd, os.NewFile(uintptr(fd), "vsock sockets")
	m.greetings = time.AfterFunc(time.Hour, m.sweep)
	m.greetings.Stop()
	if err := m.watch(unix.EPOLL_CTL_ADD, m.listener, listenerID, unix.EPOLLIN); err != nil {
		return nil, err
	}
	rc, err := m.epoll.SyscallConn()
	if err != nil {
		return nil, err
	}
	go m.poll(rc)
	return m, nil
}

// Path is where clients connect; empty: nowhere.
func (m *Muxer) Path() string { return m.path }

// Close ends everything. The device has been closed before.
func (m *Muxer) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	for _, l := range m.ports {
		l.shut()
	}
	clear(m.ports)
	m.mu.Unlock()
	if m.epoll != nil {
		m.greetings.Stop()
		// It ends poll, so that no descriptor is in use by anyone.
		m.epoll.Close()
		<-m.ended
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sockets {
		s.discard()
	}
	for s := m.first; s != nil; s = s.next {
		if s.pipe != nil {
			s.pipe.refuse(ErrClosed)
		}
	}
	return m.discard()
}

// discard gives the listener and its file back.
func (m *Muxer) discard() error {
	if m.listener < 0 {
		return nil
	}
	err := unix.Close(m.listener)
	m.listener = -1
	if st := (unix.Stat_t{}); m.inode != 0 && unix.Lstat(m.path, &st) == nil && st.Ino == m.inode {
		err = errors.Join(err, os.Remove(m.path))
	}
	return err
}

// ErrClosed is what is said of a machine that is gone.
var ErrClosed = errors.New("vsock: closed")

// watch puts a descriptor into the set, or changes what is waited for: once. The
// caller holds mu, and nothing is closed.
func (m *Muxer) watch(op, fd int, id uint64, events uint32) error {
	e := unix.EpollEvent{Events: events | unix.EPOLLONESHOT, Fd: int32(id), Pad: int32(id >> 32)}
	if err := unix.EpollCtl(m.epfd, op, fd, &e); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	return nil
}

// poll takes events until the set is closed.
func (m *Muxer) poll(rc syscall.RawConn) {
	defer close(m.ended)
	var events [64]unix.EpollEvent
	_ = rc.Read(func(fd uintptr) bool {
		for {
			n, err := unix.EpollWait(int(fd), events[:], 0)
			if err == unix.EINTR {
				continue
			}
			if n <= 0 {
				return false
			}
			for _, e := range events[:n] {
				m.fired(uint64(uint32(e.Fd))|uint64(uint32(e.Pad))<<32, e.Events)
			}
		}
	})
}

// fired takes in one event.
func (m *Muxer) fired(id uint64, events uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	if id == listenerID {
		m.accept()
		return
	}
	if s := m.sockets[id]; s != nil { // else it is gone
		s.fired(events)
	}
}

// accept takes clients. The caller holds mu.
func (m *Muxer) accept() {
	for range backlog { // others have their turn too
		if len(m.sockets) >= maxSockets && !m.makeRoom() {
			m.paused = true // until one is gone
			return
		}
		fd, _, err := unix.Accept4(m.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			m.greet(fd)
		case unix.EINTR, unix.ECONNABORTED:
		case unix.EAGAIN:
			m.listenOn()
			return
		default:
			// Out of descriptors, say: it may pass, and asking at once would spin.
			time.AfterFunc(acceptPause, func() {
				m.mu.Lock()
				defer m.mu.Unlock()
				m.listenOn()
			})
			return
		}
	}
	m.listenOn()
}

// listenOn waits for the next client. The caller holds mu.
func (m *Muxer) listenOn() {
	if !m.closed {
		_ = m.watch(unix.EPOLL_CTL_MOD, m.listener, listenerID, unix.EPOLLIN)
	}
}

// makeRoom hangs up on the oldest client that has not said what it wants.
func (m *Muxer) makeRoom() bool {
	for len(m.greeting) > 0 {
		s := m.greeting[0]
		m.greeting = m.greeting[1:]
		if s.line != nil && !s.closed {
			s.discard()
			return true
		}
	}
	return false
}

// greet begins with a client.
func (m *Muxer) greet(fd int) {
	s := m.add(fd)
	if s == nil {
		return
	}
	s.line = make([]byte, 0, maxLine)
	s.until = time.Now().Add(greetPatience)
	waiting := m.greeting[:0]
	for _, g := range m.greeting {
		if g.line != nil && !g.closed {
			waiting = append(waiting, g)
		}
	}
	m.greeting = append(waiting, s)
	if len(m.greeting) > maxGreeting {
		m.makeRoom()
	}
	m.greetings.Reset(time.Until(m.greeting[0].until))
	s.arm(unix.EPOLLIN)
}

// sweep hangs up on clients whose time is up.
func (m *Muxer) sweep() {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for len(m.greeting) > 0 {
		s := m.greeting[0]
		if s.line != nil && !s.closed && now.Before(s.until) {
			m.greetings.Reset(s.until.Sub(now))
			return
		}
		m.greeting = m.greeting[1:]
		if s.line != nil && !s.closed {
			s.discard()
		}
	}
}

// add puts a socket into the set, waiting for nothing yet. The caller holds mu.
func (m *Muxer) add(fd int) *socket {
	s := &socket{m: m, fd: fd, id: m.nextID}
	s.stream = s
	m.nextID++
	if m.watch(unix.EPOLL_CTL_ADD, fd, s.id, 0) != nil {
		unix.Close(fd)
		return nil
	}
	m.sockets[s.id] = s
	return s
}

// Open connects the guest to who listens on a port: in this process, or at the
// path with the port behind.
func (m *Muxer) Open(guestPort, hostPort uint32) (vsock.Stream, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	if l := m.ports[hostPort]; l != nil {
		return l.offer(guestPort)
	}
	if m.path == "" || m.epoll == nil {
		return nil, fs.ErrNotExist
	}
	fd, err := connect(m.path + "_" + strconv.FormatUint(uint64(hostPort), 10))
	if err != nil {
		return nil, err
	}
	s := m.add(fd)
	if s == nil {
		return nil, unix.ENOSPC
	}
	s.arm(unix.EPOLLIN)
	return s, nil
}

// OnReady says whom to wake.
func (m *Muxer) OnReady(wake func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wake = wake
	if wake != nil && m.first != nil {
		wake()
	}
}

// Next gives the oldest news.
func (m *Muxer) Next() (vsock.Event, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.first != nil {
		s := m.first
		if m.first = s.next; m.first == nil {
			m.last = nil
		}
		e := s.news
		e.Stream = s.stream
		s.queued, s.next, s.news = false, nil, vsock.Event{}
		if s.dead {
			continue
		}
		if e.Call && (e.Readable || e.Writable) {
			s.news.Readable, s.news.Writable = e.Readable, e.Writable
			m.enqueue(s)
		}
		return e, true
	}
	return vsock.Event{}, false
}

// source is a stream that can have news.
type source struct {
	vsock.Hook
	stream vsock.Stream
	pipe   *Conn // nil for a socket
	news   vsock.Event
	queued bool
	dead   bool // the device has closed it
	next   *source
}

// enqueue puts a source with news behind the others. The caller holds mu.
func (m *Muxer) enqueue(s *source) {
	if s.dead {
		return
	}
	if !s.queued {
		s.queued = true
		if m.last != nil {
			m.last.next = s
		} else {
			m.first = s
		}
		m.last = s
	}
	if m.wake != nil {
		m.wake()
	}
}
