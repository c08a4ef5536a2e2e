package muxer

import (
	"bytes"
	"io"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/devices/vsock"
)

// socket is a stream over a Unix socket. Its descriptor is read and written by the
// device alone once the client's line is there; what is waited for, and whether it is
// open, Muxer.mu guards.
type socket struct {
	source
	m      *Muxer
	fd     int
	id     uint64
	want   uint32 // what is waited for: EPOLLIN, EPOLLOUT
	hup    bool   // the peer has closed both ways
	closed bool

	line  []byte    // what the client has said of its line; nil: it is done
	until time.Time // for the line
	early []byte    // what came behind it, for the guest
}

var _ vsock.Stream = (*socket)(nil)

// arm waits for events besides what is waited for already; for 0, the peer's end
// alone, which is told always. The caller holds Muxer.mu.
func (s *socket) arm(events uint32) {
	if !s.closed {
		s.want |= events
		_ = s.m.watch(unix.EPOLL_CTL_MOD, s.fd, s.id, s.want)
	}
}

// await is arm for the device.
func (s *socket) await(events uint32) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.arm(events)
}

// fired takes in an event, once which nothing is waited for. The caller holds Muxer.mu.
func (s *socket) fired(events uint32) {
	if events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.hup = true
		events |= unix.EPOLLIN | unix.EPOLLOUT
	}
	if s.line != nil {
		s.listenTo()
		return
	}
	if s.hup && s.news.Call {
		s.discard() // it hung up before the device has heard of it
		return
	}
	if s.want &^= events; s.want != 0 {
		s.arm(0)
	}
	s.news.Readable = s.news.Readable || events&unix.EPOLLIN != 0
	s.news.Writable = s.news.Writable || events&unix.EPOLLOUT != 0
	s.m.enqueue(&s.source)
}

// listenTo reads on in the client's line. What it does not find a line in, it hangs
// up on, as Firecracker does.
func (s *socket) listenTo() {
	n, err := unix.Read(s.fd, s.line[len(s.line):maxLine])
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		s.arm(unix.EPOLLIN)
		return
	case err != nil || n <= 0:
		s.discard()
		return
	}
	s.line = s.line[:len(s.line)+n]
	line, rest, found := bytes.Cut(s.line, []byte("\n"))
	if !found {
		if len(s.line) == maxLine {
			s.discard()
			return
		}
		s.arm(unix.EPOLLIN)
		return
	}
	port, err := parseConnect(line)
	if err != nil {
		s.discard()
		return
	}
	s.line, s.want = nil, 0
	if len(rest) > 0 {
		s.early = rest
	}
	s.news = vsock.Event{Call: true, Port: port}
	s.m.enqueue(&s.source)
	s.arm(0)
}

// Opened tells the client.
func (s *socket) Opened(hostPort uint32) {
	var b [16]byte
	ok := append(strconv.AppendUint(append(b[:0], "OK "...), uint64(hostPort), 10), '\n')
	// The first bytes of a socket: they fit. If they do not go, nobody is there.
	_, err := unix.Write(s.fd, ok)
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if err != nil {
		s.hup = true
	}
	if err != nil || len(s.early) > 0 {
		s.news.Readable = true
		s.m.enqueue(&s.source)
	}
	s.arm(unix.EPOLLIN)
}

// Read fills runs.
func (s *socket) Read(runs [][]byte) (n int, more bool, err error) {
	if len(s.early) > 0 {
		for _, b := range runs {
			k := copy(b, s.early)
			s.early, n = s.early[k:], n+k
			if len(s.early) == 0 {
				s.early = nil
				break
			}
		}
		return n, true, nil
	}
	want := 0
	for _, b := range runs {
		want += len(b)
	}
	for {
		if len(runs) == 1 {
			n, err = unix.Read(s.fd, runs[0])
		} else {
			n, err = unix.Readv(s.fd, runs)
		}
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			s.await(unix.EPOLLIN)
			return 0, false, nil
		case err != nil, n <= 0:
			// The peer's end, or ECONNRESET: it closed with bytes unread.
			s.await(0)
			return 0, false, io.EOF
		case n < want:
			// That was all; waiting finds what came since.
			s.await(unix.EPOLLIN)
			return n, false, nil
		}
		return n, true, nil
	}
}

// maxVec is how many pieces are written at a time (IOV_MAX is 1024).
const maxVec = 64

// Write takes what goes into the socket's buffer.
func (s *socket) Write(runs [][]byte) (n int, err error) {
	for len(runs) > 0 {
		part := runs[:min(len(runs), maxVec)]
		want, k := 0, 0
		for _, b := range part {
			want += len(b)
		}
		if len(part) == 1 {
			k, err = unix.Write(s.fd, part[0])
		} else {
			k, err = unix.Writev(s.fd, part)
		}
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			s.await(unix.EPOLLOUT)
			return n, nil
		case err != nil:
			return n, err
		}
		n += k
		if k < want {
			s.await(unix.EPOLLOUT)
			return n, nil
		}
		runs = runs[len(part):]
	}
	return n, nil
}

// Gone says whether the peer has closed both ways.
func (s *socket) Gone() bool {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	return s.hup
}

// CloseRead makes the peer's writes fail.
func (s *socket) CloseRead() { _ = unix.Shutdown(s.fd, unix.SHUT_RD) }

// CloseWrite makes the peer read the end.
func (s *socket) CloseWrite() { _ = unix.Shutdown(s.fd, unix.SHUT_WR) }

// Close ends the connection.
func (s *socket) Close() {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.discard()
}

// discard closes the descriptor. The caller holds Muxer.mu.
func (s *socket) discard() {
	if s.closed {
		return
	}
	s.closed, s.dead = true, true
	delete(s.m.sockets, s.id)
	unix.Close(s.fd)
	if m := s.m; m.paused {
		m.paused = false
		m.listenOn()
	}
}
