// Package client speaks to a running machine's process over its Unix socket.
//
//	c := client.New("/run/user/1000/smolvmm/machines/web/api.sock")
//	info, err := c.Info(ctx)
//
// It needs the standard library only. Every call ends when its context does;
// what the machine refuses is an *Error, and a machine that is gone is ErrGone.
// docs/api.md of smolvmm tells what each path does.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"
)

// ErrGone: nobody listens on the socket, or it hung up: the machine's process
// has ended, or never was.
var ErrGone = errors.New("the machine is not there")

// Error is what a machine answered instead of doing what it was asked.
type Error struct {
	Method, Path string
	Status       int    // of HTTP
	Message      string // the machine's words, one line
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s %s: %s (HTTP status %d)", e.Method, e.Path, e.Message, e.Status)
}

// Client speaks to one machine. It is safe for concurrent use, and keeps no
// connection open between calls.
type Client struct {
	socket string
	http   http.Client
}

// New makes a client of the machine that listens at the socket's path. Nothing
// is opened yet.
func New(socket string) *Client {
	c := &Client{socket: socket}
	c.http.Transport = &http.Transport{
		DisableKeepAlives:  true,
		DisableCompression: true,

		MaxResponseHeaderBytes: maxHead,
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
	}
	return c
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", c.socket)
}

// Limits of what is read from a machine, whose process could be another's.
const (
	maxAnswer = 16 << 20 // bytes of a whole answer
	maxLine   = 64 << 10 // bytes of an event
	maxHead   = 64 << 10 // bytes before an answer's body
	maxFault  = 4 << 10  // bytes of an error's text
)

// do makes a request with a JSON body, if in is not nil, and reads the answer
// into out: a *[]byte takes it as it is, anything else by JSON.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return gone(ctx, method, path, err)
	case len(b) > maxAnswer:
		return fmt.Errorf("%s %s: the answer has more than %d bytes", method, path, maxAnswer)
	}
	if raw, ok := out.(*[]byte); ok {
		*raw = b
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s %s: the answer makes no sense: %w", method, path, err)
	}
	return nil
}

// send makes a request; the answer is a good one, and its body the caller's to close.
func (c *Client) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, gone(ctx, method, path, err)
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		return nil, fault(method, path, resp)
	}
	return resp, nil
}

// fault reads the body of an answer that is an error.
func fault(method, path string, resp *http.Response) error {
	e := &Error{Method: method, Path: path, Status: resp.StatusCode, Message: resp.Status}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxFault))
	var f struct {
		Message string `json:"fault_message"`
	}
	if json.Unmarshal(b, &f) == nil && f.Message != "" {
		e.Message = f.Message
	}
	return e
}

// gone tells a machine that is not there from other failures.
func gone(ctx context.Context, method, path string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s %s: %w", method, path, context.Cause(ctx))
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	for _, e := range []error{syscall.ENOENT, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, e) {
			return fmt.Errorf("%s %s: %w: %w", method, path, ErrGone, err)
		}
	}
	return fmt.Errorf("%s %s: %w", method, path, err)
}

// Info tells what the machine is and does.
func (c *Client) Info(ctx context.Context) (info Info, err error) {
	err = c.do(ctx, http.MethodGet, "/smolvmm/info", nil, &info)
	return info, err
}

// Ports gives the published ports.
func (c *Client) Ports(ctx context.Context) (ports []Port, err error) {
	err = c.do(ctx, http.MethodGet, "/smolvmm/ports", nil, &ports)
	return ports, err
}

// Egress gives the counters of the networks behind the interfaces.
func (c *Client) Egress(ctx context.Context) (e Egress, err error) {
	err = c.do(ctx, http.MethodGet, "/smolvmm/egress", nil, &e)
	return e, err
}

// Flows gives what is open behind the interfaces, at most max of them (0: 4096), the
// newest first.
func (c *Client) Flows(ctx context.Context, max int) (flows []Flow, err error) {
	err = c.do(ctx, http.MethodGet, "/smolvmm/flows?max="+strconv.Itoa(max), nil, &flows)
	return flows, err
}

// SetBootOptions sets what Firecracker's API has no words for, before the start.
func (c *Client) SetBootOptions(ctx context.Context, o BootOptions) error {
	return c.do(ctx, http.MethodPut, "/smolvmm/boot", o, nil)
}

// BootOptions gives it.
func (c *Client) BootOptions(ctx context.Context) (o BootOptions, err error) {
	err = c.do(ctx, http.MethodGet, "/smolvmm/boot", nil, &o)
	return o, err
}

// Metrics gives the machine's counters in Prometheus's text format 0.0.4.
func (c *Client) Metrics(ctx context.Context) (text []byte, err error) {
	err = c.do(ctx, http.MethodGet, "/metrics", nil, &text)
	return text, err
}

// Pause stops the guest between two instructions; Resume lets it go on. Both do
// nothing where it is so already.
func (c *Client) Pause(ctx context.Context) error { return c.vm(ctx, "Paused") }

// Resume undoes Pause.
func (c *Client) Resume(ctx context.Context) error { return c.vm(ctx, "Resumed") }

func (c *Client) vm(ctx context.Context, state string) error {
	return c.do(ctx, http.MethodPatch, "/vm", map[string]string{"state": state}, nil)
}

// Start starts a machine that was configured over the socket.
func (c *Client) Start(ctx context.Context) error { return c.action(ctx, "InstanceStart") }

// Shutdown asks the guest to shut down, and returns when it has been asked.
func (c *Client) Shutdown(ctx context.Context) error { return c.action(ctx, "SendCtrlAltDel") }

func (c *Client) action(ctx context.Context, what string) error {
	return c.do(ctx, http.MethodPut, "/actions", map[string]string{"action_type": what}, nil)
}

// Stop asks the guest to shut down and ends the machine when grace is over; it
// returns once that is under way. asked says whether there was anyone in the
// guest who could be asked: where there is not, the machine ends at once.
func (c *Client) Stop(ctx context.Context, grace time.Duration) (asked bool, err error) {
	var out struct {
		Asked bool `json:"asked"`
	}
	in := map[string]int64{"grace_ms": grace.Milliseconds()}
	err = c.do(ctx, http.MethodPut, "/smolvmm/stop", in, &out)
	return out.Asked, err
}

// Kill ends the machine as if its power were cut.
func (c *Client) Kill(ctx context.Context) error {
	return c.do(ctx, http.MethodPut, "/smolvmm/kill", nil, nil)
}

// Console gives the end of what the guest has printed, at most max bytes of it;
// 0 is all that is kept.
func (c *Client) Console(ctx context.Context, max int) (text []byte, err error) {
	err = c.do(ctx, http.MethodGet, "/smolvmm/console?tail="+strconv.Itoa(max), nil, &text)
	return text, err
}

// SetMachineConfig sets processors and memory, before the start.
func (c *Client) SetMachineConfig(ctx context.Context, m MachineConfig) error {
	return c.do(ctx, http.MethodPut, "/machine-config", m, nil)
}

// MachineConfig gives them.
func (c *Client) MachineConfig(ctx context.Context) (m MachineConfig, err error) {
	err = c.do(ctx, http.MethodGet, "/machine-config", nil, &m)
	return m, err
}

// SetBootSource sets the kernel, before the start.
func (c *Client) SetBootSource(ctx context.Context, b BootSource) error {
	return c.do(ctx, http.MethodPut, "/boot-source", b, nil)
}

// SetDrive adds a disk or replaces the one with its ID, before the start.
func (c *Client) SetDrive(ctx context.Context, d Drive) error {
	return c.do(ctx, http.MethodPut, "/drives/"+url.PathEscape(d.ID), d, nil)
}

// SetNetworkInterface adds an interface or replaces the one with its ID, before
// the start.
func (c *Client) SetNetworkInterface(ctx context.Context, n NetworkInterface) error {
	return c.do(ctx, http.MethodPut, "/network-interfaces/"+url.PathEscape(n.ID), n, nil)
}
