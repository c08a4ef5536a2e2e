// Package streams is what both ends of a measurement of streams say: the services
// of a guest, and their client on the host behind Firecracker's convention of
// virtio-vsock.
//
// A client of Source or Sink says by 8 bytes, the least significant first, how much
// it wants to get or to send. Sink answers what it took with one byte. A byte's
// place in the stream gives its value, so that bytes that are lost, doubled or
// exchanged are seen.
package streams

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// Ports of the guest's, those of RFC 862, 863 and 864.
const (
	EchoPort   = 7
	SinkPort   = 9
	SourcePort = 19
)

// chunk is how much is read or written at once: a packet of virtio-vsock has no
// more, in Linux.
const chunk = 64 << 10

// period of the bytes' values: a prime, so that it falls in step with no buffer.
const period = 65521

// pattern is a period, and a chunk of the next: from any place in the first there
// is a chunk to send.
func pattern() []byte {
	p := make([]byte, period+chunk)
	x := uint32(1)
	for i := range period {
		x = x*1664525 + 1013904223
		p[i] = byte(x >> 24)
	}
	for i := period; i < len(p); i++ {
		p[i] = p[i-period]
	}
	return p
}

// send writes n bytes of the pattern p.
func send(w io.Writer, p []byte, n uint64) error {
	for at := uint64(0); at < n; {
		from := at % period
		size := min(n-at, chunk)
		if _, err := w.Write(p[from : from+size]); err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", at, n, err)
		}
		at += size
	}
	return nil
}

// receive reads n bytes of the pattern p. It looks at the first and the last of each
// read: to compare all would be a part of the time that is measured.
func receive(r io.Reader, p []byte, n uint64) error {
	buf := make([]byte, chunk)
	for at := uint64(0); at < n; {
		got, err := r.Read(buf[:min(n-at, chunk)])
		if got > 0 {
			last := at + uint64(got) - 1
			if buf[0] != p[at%period] || buf[got-1] != p[last%period] {
				return fmt.Errorf("other bytes than were sent, from %d to %d", at, last)
			}
			at = last + 1
		}
		if err != nil && at < n {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("after %d of %d bytes: %w", at, n, err)
		}
	}
	return nil
}

// wanted reads how much a client asks for; false: it has hung up instead.
func wanted(r io.Reader) (uint64, bool, error) {
	var b [8]byte
	_, err := io.ReadFull(r, b[:])
	if err == io.EOF {
		return 0, false, nil
	}
	return binary.LittleEndian.Uint64(b[:]), err == nil, err
}

func ask(w io.Writer, n uint64) error {
	_, err := w.Write(binary.LittleEndian.AppendUint64(nil, n))
	return err
}

// Source serves one client with bytes, until it hangs up.
func Source(c io.ReadWriter) error {
	for p := pattern(); ; {
		n, more, err := wanted(c)
		if !more {
			return err
		}
		if err := send(c, p, n); err != nil {
			return err
		}
	}
}

// Sink takes one client's bytes, until it hangs up.
func Sink(c io.ReadWriter) error {
	for p := pattern(); ; {
		n, more, err := wanted(c)
		if !more {
			return err
		}
		if err := receive(c, p, n); err != nil {
			return err
		}
		if _, err := c.Write([]byte{1}); err != nil {
			return err
		}
	}
}

// Echo sends one client's bytes back, until it hangs up.
func Echo(c io.ReadWriter) error {
	_, err := io.Copy(c, c)
	return err
}

// Get has a Source send n bytes. The time is from the request to the last byte.
func Get(c io.ReadWriter, n uint64) (time.Duration, error) {
	p, begin := pattern(), time.Now()
	if err := ask(c, n); err != nil {
		return 0, err
	}
	err := receive(c, p, n)
	return time.Since(begin), err
}

// Put sends a Sink n bytes. The time is from the first to the answer, by which it
// has read the last.
func Put(c io.ReadWriter, n uint64) (time.Duration, error) {
	p, begin := pattern(), time.Now()
	if err := ask(c, n); err != nil {
		return 0, err
	}
	if err := send(c, p, n); err != nil {
		return 0, err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return time.Since(begin), err
}

// Trips sends one byte n times to an Echo and takes it back, and gives the time of
// each.
func Trips(c io.ReadWriter, n int) ([]time.Duration, error) {
	took := make([]time.Duration, n)
	b := make([]byte, 1)
	for i := range took {
		begin := time.Now()
		b[0] = byte(i)
		if _, err := c.Write(b); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return nil, err
		}
		took[i] = time.Since(begin)
		if b[0] != byte(i) {
			return nil, fmt.Errorf("byte %#x came back as %#x", byte(i), b[0])
		}
	}
	return took, nil
}

// maxAnswer bounds the line by which a connection is told to be there.
const maxAnswer = 32

// ErrRefused: the guest has nobody at the port.
var ErrRefused = errors.New("refused")

// Connect reaches a port of a guest's behind a Unix socket by Firecracker's
// convention (docs/vsock.md of firecracker): `CONNECT port`, answered by `OK port`
// or by nothing but the end. The connection has a limit of so much time in all, 0
// for none.
func Connect(path string, port uint32, limit time.Duration) (*net.UnixConn, error) {
	fail := func(err error) (*net.UnixConn, error) {
		return nil, fmt.Errorf("port %d behind %s: %w", port, path, err)
	}
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fail(err)
	}
	if limit > 0 {
		if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
			c.Close()
			return fail(err)
		}
	}
	line, err := "", error(nil)
	if _, err = fmt.Fprintf(c, "CONNECT %d\n", port); err == nil {
		line, err = answer(c)
	}
	if err != nil {
		c.Close()
		return fail(err)
	}
	if !strings.HasPrefix(line, "OK ") {
		c.Close()
		return fail(fmt.Errorf("the answer is %q", line))
	}
	return c, nil
}

// answer reads a line and nothing beyond it, which is the guest's.
func answer(r io.Reader) (string, error) {
	var line []byte
	for one := make([]byte, 1); len(line) < maxAnswer; {
		if _, err := io.ReadFull(r, one); err == io.EOF && len(line) == 0 {
			return "", ErrRefused
		} else if err != nil {
			return "", err
		}
		if one[0] == '\n' {
			return string(line), nil
		}
		line = append(line, one[0])
	}
	return "", fmt.Errorf("an answer without an end: %q", line)
}
