package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"
)

// Types of ICMP (RFC 792) and ICMPv6 (RFC 4443).
const (
	echoRequest  = 8
	echoReply    = 0
	echoRequest6 = 128
	echoReply6   = 129
)

// checkPing sends echo requests of two sizes by a raw socket; the larger one,
// IPv4's alone, goes in fragments.
func checkPing(ctx context.Context, list string) (string, error) {
	var said []string
	for _, addr := range strings.Split(list, ",") {
		sizes := []int{56, 3000}
		if strings.Contains(addr, ":") {
			sizes = sizes[:1] // a gateway may take no fragments of ICMPv6, in which anything could hide
		}
		for _, size := range sizes {
			took, err := ping(ctx, addr, size, 3)
			if err != nil {
				return "", fmt.Errorf("%s, %d bytes: %w", addr, size, err)
			}
			said = append(said, fmt.Sprintf("%s answered %d bytes in %v", addr, size, took.Round(time.Microsecond)))
		}
	}
	return strings.Join(said, ", "), nil
}

func checkNoPong(ctx context.Context, addr string) (string, error) {
	took, err := ping(ctx, addr, 56, 1)
	if err == nil {
		return "", fmt.Errorf("%s answered in %v", addr, took)
	}
	return err.Error(), nil
}

var errNoAnswer = errors.New("no answer")

func ping(ctx context.Context, addr string, size, tries int) (time.Duration, error) {
	to, err := netip.ParseAddr(addr)
	if err != nil {
		return 0, err
	}
	network, local, request, reply := "ip4:icmp", "0.0.0.0", byte(echoRequest), byte(echoReply)
	if to.Is6() {
		network, local, request, reply = "ip6:ipv6-icmp", "::", echoRequest6, echoReply6
	}
	var lc net.ListenConfig
	c, err := lc.ListenPacket(ctx, network, local)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	buf := make([]byte, 65536)
	for seq := range tries {
		msg := make([]byte, 8+size)
		msg[0] = request
		binary.BigEndian.PutUint16(msg[4:], uint16(os.Getpid()))
		binary.BigEndian.PutUint16(msg[6:], uint16(seq))
		for i := range msg[8:] {
			msg[8+i] = byte(i)
		}
		if to.Is4() { // ICMPv6's is the kernel's to fill in (RFC 3542 §3.1)
			binary.BigEndian.PutUint16(msg[2:], checksum(msg))
		}
		begun := time.Now()
		if _, err := c.WriteTo(msg, &net.IPAddr{IP: to.AsSlice()}); err != nil {
			return 0, err
		}
		if err := c.SetReadDeadline(begun.Add(3 * time.Second)); err != nil {
			return 0, err
		}
		for {
			n, from, err := c.ReadFrom(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return 0, err
			}
			if ip, ok := from.(*net.IPAddr); ok && ip.IP.Equal(to.AsSlice()) && n == len(msg) && buf[0] == reply && bytes.Equal(buf[4:n], msg[4:]) {
				return time.Since(begun), nil
			}
		}
	}
	return 0, errNoAnswer
}

// checksum is RFC 1071's.
func checksum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}
