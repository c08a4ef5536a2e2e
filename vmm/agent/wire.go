// Package agent is what a host and the agent inside a guest say to each other
// over a byte stream: run a command, copy files, shut down. It knows neither
// how the stream came about (virtio-vsock, or the network's host-only link) nor
// how a guest makes processes; the agent itself is in smolinit.
//
// A stream begins with a greeting by which both sides prove that they have the
// machine's key (Greet, Answer). After it each side sends frames:
//
//	byte 0     type (Type)
//	bytes 1–3  length n of the payload in bytes, little-endian, at most MaxPayload
//	n bytes    payload
//
// The host's first frame is a Request; a stream serves one request. Nothing is
// multiplexed beyond that: a reader that is slow slows its own stream only, by
// the stream's own flow control.
//
// Both sides are wary of the other. The host has the more reason: whatever a
// guest sends, a copy writes nothing outside the place it was asked to fill, and
// no frame makes either side allocate more than a payload.
package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"unicode/utf8"
)

// Port is the TCP port of the host-only link, and the vsock port, that the agent
// listens on: below 1024, where only the guest's superuser can.
const Port = 1023

// MaxPayload is the largest payload in bytes. A request with its arguments and
// environment has to fit in one: NetBSD's own limit on both is 256 KiB (ARG_MAX).
const MaxPayload = 1 << 20

// chunk is how much data one frame has at most, in bytes: as much as a Unix
// pipe, and little beside the time of a system call at any likely speed.
const chunk = 64 << 10

// Type tells what a frame is.
type Type byte

// The types, with who sends them and the payload.
const (
	// TypeRequest, host: a Request as JSON.
	TypeRequest Type = 1
	// TypeStarted, guest: the command runs. Payload: Started as JSON.
	TypeStarted Type = 2
	// TypeStdin, host: bytes for the command's standard input; none at all is its end.
	TypeStdin Type = 3
	// TypeStdout and TypeStderr, guest: what the command wrote. With a
	// terminal all of it is TypeStdout.
	TypeStdout Type = 4
	TypeStderr Type = 5
	// TypeSignal, host: a signal's name, as "SIGTERM": numbers differ.
	TypeSignal Type = 6
	// TypeResize, host: Size as JSON.
	TypeResize Type = 7
	// TypeExit, guest, last: Status as JSON.
	TypeExit Type = 8
	// TypeError, either, last: a byte, the status that a shell would give
	// (CodeFailed and the others), and one line that says why the request ended.
	TypeError Type = 9
	// TypeEntry begins a file, folder or link of a copy: Entry as JSON.
	TypeEntry Type = 10
	// TypeData, of the file begun last: 8 bytes of offset, little-endian, then
	// bytes. What no frame covers is a hole.
	TypeData Type = 11
	// TypeDone, either: all entries have been sent, or all have been written.
	TypeDone Type = 12
	// TypeCredit, guest: 4 bytes, little-endian: how many more bytes of
	// TypeStdin it takes. It begins with Window.
	TypeCredit Type = 13
)

// Window is how many bytes of standard input may be on their way to a command
// that does not read. So the agent can always read on, and a signal or a new
// size is never stuck behind them.
const Window = 256 << 10

// Operations of a Request.
const (
	OpExec     = "exec"     // run a command
	OpRead     = "read"     // copy Path to the host
	OpWrite    = "write"    // copy from the host to Path
	OpInfo     = "info"     // tell of the guest: a Started, then Status
	OpShutdown = "shutdown" // end the guest's command and then the machine
)

// Request is what the host wants.
type Request struct {
	Op string `json:"op"`
	// Of OpExec. Argv's first is a path, or a name that is looked for in PATH.
	Argv []string `json:"argv,omitempty"`
	Env  []string `json:"env,omitempty"` // NAME=VALUE, over the guest command's own
	Cwd  string   `json:"cwd,omitempty"`
	User string   `json:"user,omitempty"` // name or number, [:group]; root if empty
	TTY  *Size    `json:"tty,omitempty"`  // with a terminal of that size
	// Of OpRead and OpWrite: a path in the guest. Written is what it becomes
	// there: with Into, Path is a folder and the entry keeps its Name.
	Path string `json:"path,omitempty"`
	// Follow has a copy begin at what a symbolic link named by Path leads to.
	Follow bool `json:"follow,omitempty"`
}

// Size is a terminal's, in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Started tells of a command that runs, or of the guest.
type Started struct {
	PID int `json:"pid"`
	// Of OpInfo.
	System   string `json:"system,omitempty"`   // "NetBSD 10.99.12"
	Hostname string `json:"hostname,omitempty"` //
	Uptime   int64  `json:"uptime,omitempty"`   // milliseconds since the agent started
}

// Status is how a command ended.
type Status struct {
	Code   int    `json:"code"`             // 0 to 255; 128 + the guest's number of a signal that ended it
	Signal string `json:"signal,omitempty"` // and its name, as "SIGKILL"
}

// Codes of a TypeError, as shells have them.
const (
	CodeFailed   = 125 // what was asked could not be done
	CodeNotExec  = 126 // the command is there and cannot be run
	CodeNotFound = 127 // there is no such command
)

// RemoteError is what the other side said in a TypeError frame.
type RemoteError struct {
	Code int // CodeFailed, CodeNotExec or CodeNotFound
	Text string
}

func (e *RemoteError) Error() string { return e.Text }

// ErrProtocol: the other side does not keep to this package's rules.
var ErrProtocol = errors.New("agent: protocol error")

func protocolf(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrProtocol}, args...)...)
}

// Conn sends and receives frames. Send may be called by several goroutines,
// Receive by one.
type Conn struct {
	r io.Reader

	mu  sync.Mutex // of a frame on its way out
	w   io.Writer
	out []byte

	head [4]byte
	in   []byte
}

// NewConn makes a Conn of a stream on which both sides have proved who they are.
// The stream stays the caller's to close.
func NewConn(rw io.ReadWriter) *Conn { return &Conn{r: rw, w: rw} }

// Send sends a frame in one write. Without the other side's reading it blocks as
// the stream does.
func (c *Conn) Send(t Type, payload ...[]byte) error {
	n := 0
	for _, p := range payload {
		n += len(p)
	}
	if n > MaxPayload {
		return fmt.Errorf("agent: %d bytes are more than one message takes (%d)", n, MaxPayload)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out = append(c.out[:0], byte(t), byte(n), byte(n>>8), byte(n>>16))
	for _, p := range payload {
		c.out = append(c.out, p...)
	}
	_, err := c.w.Write(c.out)
	return err
}

// SendJSON sends a frame with v as JSON.
func (c *Conn) SendJSON(t Type, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.Send(t, b)
}

// SendError sends the line of an error: the last frame.
func (c *Conn) SendError(err error) error {
	code := byte(CodeFailed)
	switch {
	case errors.Is(err, ErrNotFound):
		code = CodeNotFound
	case errors.Is(err, ErrNotExec):
		code = CodeNotExec
	}
	return c.Send(TypeError, []byte{code}, []byte(line(err.Error())))
}

// Errors of a command that SendError has codes for.
var (
	ErrNotFound = errors.New("no such command")
	ErrNotExec  = errors.New("not a program that can be run")
)

// Receive gives the next frame. The payload is good until the next call. An
// error frame is returned as a *RemoteError; the stream's end between two frames
// is io.EOF.
func (c *Conn) Receive() (Type, []byte, error) {
	if _, err := io.ReadFull(c.r, c.head[:]); err != nil {
		return 0, nil, err
	}
	n := int(c.head[1]) | int(c.head[2])<<8 | int(c.head[3])<<16
	if n > MaxPayload {
		return 0, nil, protocolf("a message of %d bytes", n)
	}
	c.in = c.in[:0]
	// What is announced is only believed as it comes.
	for len(c.in) < n {
		have := len(c.in)
		c.in = append(c.in, make([]byte, min(n-have, chunk))...)
		if _, err := io.ReadFull(c.r, c.in[have:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, nil, err
		}
	}
	t := Type(c.head[0])
	if t == TypeError {
		if n == 0 || c.in[0] < CodeFailed || c.in[0] > CodeNotFound {
			return 0, nil, protocolf("an error without a code")
		}
		return t, nil, &RemoteError{int(c.in[0]), line(string(c.in[1:]))}
	}
	return t, c.in, nil
}

// request sends a stream's first frame. What JSON has no words for is refused: it
// would ask for another file, or give a command other arguments.
func (c *Conn) request(r Request) error {
	for _, texts := range [][]string{r.Argv, r.Env, {r.Cwd, r.User, r.Path}} {
		for _, s := range texts {
			if !utf8.ValidString(s) {
				return fmt.Errorf("%.70q is not UTF-8 and cannot be sent to a guest", s)
			}
		}
	}
	return c.SendJSON(TypeRequest, r)
}

// ReceiveRequest gives a stream's first frame.
func (c *Conn) ReceiveRequest() (r Request, err error) {
	t, b, err := c.Receive()
	if err == nil && t != TypeRequest {
		err = protocolf("message %d as the first", t)
	}
	if err == nil {
		err = decode(b, &r)
	}
	return r, err
}

// DecodeSize reads the payload of TypeResize.
func DecodeSize(b []byte) (s Size, err error) {
	err = decode(b, &s)
	return s, err
}

// decode reads a frame's JSON.
func decode(payload []byte, v any) error {
	if err := json.Unmarshal(payload, v); err != nil {
		return protocolf("%v", err)
	}
	return nil
}

// maxLine is how much of the other side's words is repeated, in bytes.
const maxLine = 512

// line makes one line of what the other side said, which could steer a terminal.
func line(s string) string {
	b := make([]rune, 0, min(len(s), maxLine))
	for _, r := range s {
		if len(b) == maxLine {
			break
		}
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			r = ' '
		}
		b = append(b, r)
	}
	return string(b)
}
