package api

import (
	"errors"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxConns bounds the connections at once: a few for each of a machine's users,
// and less than 4 MiB of buffers.
const maxConns = 128

// peer is who is at the other end of a connection (unix(7), SO_PEERCRED).
type peer struct{ uid, pid int }

type peerKey struct{}

// peerConn is a connection whose other end is known.
type peerConn struct {
	net.Conn
	peer    peer
	release func() // once
}

func (c *peerConn) Close() error {
	err := c.Conn.Close()
	c.release()
	return err
}

// CloseWrite ends this side's half.
func (c *peerConn) CloseWrite() error { return c.Conn.(*net.UnixConn).CloseWrite() }

// hasGone says whether the other end of a connection has been closed, also while
// others read and write: a write of nothing to a Unix socket fails then (EPIPE),
// not where only the other's writing has ended.
func hasGone(c net.Conn) bool {
	p, ok := c.(*peerConn)
	if !ok {
		return false
	}
	raw, err := p.Conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return true
	}
	var sysErr error
	// Control takes no turn among the writers, of whom one may be waiting.
	err = raw.Control(func(fd uintptr) { _, sysErr = unix.Write(int(fd), nil) })
	return err != nil || errors.Is(sysErr, unix.EPIPE) || errors.Is(sysErr, unix.ECONNRESET)
}

func ownUID() int { return os.Geteuid() }

// guarded hands on connections of one user, and of root, and not too many: the
// socket's mode says the same, but the folder may be one that others can write.
type guarded struct {
	*net.UnixListener
	s     *Server
	uid   int
	slots chan struct{}
}

func (g *guarded) Accept() (net.Conn, error) {
	for {
		c, err := g.AcceptUnix()
		if err != nil {
			return nil, err
		}
		p, err := peerOf(c)
		switch {
		case err != nil || p.uid != g.uid && p.uid != 0:
			g.s.counters.strangers.Add(1)
			g.s.log.Warn("api: a connection of another user was refused", "uid", p.uid, "pid", p.pid, "err", err)
			c.Close()
			continue
		}
		select {
		case g.slots <- struct{}{}:
			return &peerConn{Conn: c, peer: p, release: sync.OnceFunc(func() { <-g.slots })}, nil
		default:
			// Full: who comes now is turned away, and may try again.
			g.s.counters.crowded.Add(1)
			c.Close()
		}
	}
}

// maxScrapers bounds who reads metrics over TCP at once.
const maxScrapers = 8

// crowd takes a bounded number of connections.
type crowd struct {
	net.Listener
	s     *Server
	slots chan struct{}
}

func (g *crowd) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case g.slots <- struct{}{}:
			return &countedConn{c, sync.OnceFunc(func() { <-g.slots })}, nil
		default:
			g.s.counters.crowded.Add(1)
			c.Close()
		}
	}
}

type countedConn struct {
	net.Conn
	release func()
}

func (c *countedConn) Close() error {
	err := c.Conn.Close()
	c.release()
	return err
}

// peerOf asks the kernel who connected.
func peerOf(c *net.UnixConn) (p peer, err error) {
	p = peer{uid: -1, pid: -1}
	raw, err := c.SyscallConn()
	if err != nil {
		return p, err
	}
	var cred *unix.Ucred
	var sysErr error
	if err := raw.Control(func(fd uintptr) { cred, sysErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return p, err
	}
	if sysErr != nil || cred == nil {
		return p, errors.Join(errors.New("SO_PEERCRED"), sysErr)
	}
	return peer{uid: int(cred.Uid), pid: int(cred.Pid)}, nil
}
