package dns

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Of resolv.conf(5), glibc's and NetBSD's.
const (
	maxServers   = 3 // MAXNS: nameservers beyond it are not asked by the host either
	dnsPort      = 53
	attempts     = 2               // rounds through all servers
	tryTimeout   = 3 * time.Second // of one server; "options timeout" may set it shorter
	maxConf      = 1 << 16         // bytes of resolv.conf that are read
	maxDatagram  = 8 << 10         // a longer answer over UDP counts as truncated
	maxStrangers = 64              // datagrams that are no answer, until a try is given up
)

// Dial opens a connection to a resolver; net.Dialer's DialContext is one.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// upstream asks the nameservers of a resolv.conf.
type upstream struct {
	dial    Dial
	servers []string
	try     time.Duration
	useTCP  bool
	good    atomic.Int32 // the server that answered last, so that a dead one costs its timeout once
	buffers sync.Pool
}

// System asks the nameservers that a resolv.conf(5) names, or those of the
// loopback if it names none, in turn, over UDP or TCP. It reads all it needs at
// once; dial is nil for the host's own network. Errors are the reader's.
func System(resolvConf io.Reader, dial Dial) (Exchange, error) {
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	u := &upstream{dial: dial, try: tryTimeout}
	u.buffers.New = func() any { b := make([]byte, maxDatagram); return &b }
	in := bufio.NewScanner(io.LimitReader(resolvConf, maxConf))
	for in.Scan() {
		line := in.Text()
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil && len(u.servers) < maxServers {
				u.servers = append(u.servers, netip.AddrPortFrom(a, dnsPort).String())
			}
		case "options":
			for _, o := range f[1:] {
				if n, ok := strings.CutPrefix(o, "timeout:"); ok {
					if sec, err := strconv.Atoi(n); err == nil && sec > 0 {
						u.try = min(time.Duration(min(sec, 60))*time.Second, tryTimeout)
					}
				}
				u.useTCP = u.useTCP || o == "use-vc"
			}
		}
	}
	if err := in.Err(); err != nil {
		return nil, fmt.Errorf("dns: resolv.conf: %w", err)
	}
	if len(u.servers) == 0 {
		u.servers = []string{"127.0.0.1:53", "[::1]:53"} // resolv.conf(5): the local machine
	}
	return u.exchange, nil
}

// exchange asks each server until one answers. One that refuses or fails is
// believed only if no other does better, as the host's resolver has it.
func (u *upstream) exchange(ctx context.Context, query []byte, tcp bool) ([]byte, error) {
	var poor []byte
	var errs error
	first := int(u.good.Load())
	for i := range attempts * len(u.servers) {
		if i == len(u.servers) && poor != nil || i > 0 && ctx.Err() != nil {
			break
		}
		n := (first + i) % len(u.servers)
		answer, err := u.ask(ctx, u.servers[n], query, tcp || u.useTCP)
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		if !isPoor(answer) {
			u.good.Store(int32(n))
			return answer, nil
		}
		poor = answer
	}
	if poor != nil {
		return poor, nil
	}
	return nil, errs
}

// isPoor: the server did not say anything about the name.
func isPoor(answer []byte) bool {
	switch dnsmessage.RCode(word(answer, 2) & rcodeMask) {
	case dnsmessage.RCodeServerFailure, dnsmessage.RCodeNotImplemented, dnsmessage.RCodeRefused:
		return true
	}
	return false
}

func (u *upstream) ask(ctx context.Context, server string, query []byte, tcp bool) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, u.try)
	defer cancel()
	network := "udp"
	if tcp {
		network = "tcp"
	}
	conn, err := u.dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// A new socket for each query has a port of its own, which is hard to guess (RFC 5452 §9.2).
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if tcp {
		return askTCP(conn, query)
	}
	return u.askUDP(conn, query)
}

func (u *upstream) askUDP(conn net.Conn, query []byte) ([]byte, error) {
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	buf := u.buffers.Get().(*[]byte)
	defer u.buffers.Put(buf)
	for range maxStrangers {
		n, err := conn.Read(*buf)
		if err != nil {
			return nil, err
		}
		if b := (*buf)[:n]; answers(b, query) {
			if n == len(*buf) {
				b[2] |= flagTC >> 8
			}
			return append([]byte(nil), b...), nil
		}
	}
	return nil, fmt.Errorf("dns: %v sends datagrams that are no answer", conn.RemoteAddr())
}

// askTCP: a message over TCP has its length before it, RFC 1035 §4.2.2.
func askTCP(conn net.Conn, query []byte) ([]byte, error) {
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	answer := make([]byte, word(length[:], 0))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return nil, err
	}
	if !answers(answer, query) {
		return nil, errMessage
	}
	return answer, nil
}
