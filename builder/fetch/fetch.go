// Package fetch brings files from HTTP servers into folders of the host: whole,
// checked and under their name only then. A transfer that is cut is taken up where
// it ended, by the same call or by a later one. Servers are not trusted: what they
// send is bounded, and so is how long they may be silent.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/builder/fetch/files"
)

// IdleTime is how long a server may send nothing where Options do not say.
const IdleTime = 30 * time.Second

// What an *Error can be about, for errors.Is.
var (
	ErrNotFound = files.ErrNotFound
	ErrNetwork  = files.ErrNetwork
	ErrServer   = files.ErrServer
	ErrChecksum = files.ErrChecksum
	ErrCache    = files.ErrCache
)

// Error is one line for the user: what, where, what to do.
type Error = files.Error

// Fail makes an *Error; cause may be nil.
func Fail(kind, cause error, format string, args ...any) error {
	return files.Fail(kind, cause, format, args...)
}

// Options of a Client. The zero value is good.
type Options struct {
	// Idle is how long a server may send nothing. 0 is IdleTime.
	Idle time.Duration
	// Proxy as in http.Transport; nil is none. Commands pass
	// http.ProxyFromEnvironment.
	Proxy func(*http.Request) (*url.URL, error)
	// Advice is what who has no network can do; it ends the line of an ErrNetwork.
	Advice string
	// Disk words an error of the disk for the user. nil names the error only.
	Disk func(error) error
}

// Client fetches. Its methods may be called by several goroutines at once.
type Client struct {
	o    Options
	http *http.Client
}

// New gives a client. Close it when no more is wanted of it.
func New(o Options) *Client {
	if o.Idle == 0 {
		o.Idle = IdleTime
	}
	if o.Disk == nil {
		o.Disk = func(err error) error { return Fail(ErrCache, err, "%v", err) }
	}
	return &Client{o, &http.Client{
		CheckRedirect: noDowngrade,
		Transport: &idleTransport{o.Idle, &http.Transport{
			Proxy:                 o.Proxy,
			DisableCompression:    true, // a .gz is wanted as it is
			ResponseHeaderTimeout: o.Idle,
			TLSHandshakeTimeout:   o.Idle,
			ForceAttemptHTTP2:     true,
		}},
	}}
}

// HTTP is the client's own: it stays under TLS where it began, unpacks nothing,
// and a server that is silent for longer than Idle fails it, at the headers and in
// the body.
func (c *Client) HTTP() *http.Client { return c.http }

// Close gives back the connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Base checks the URL of a mirror and gives it without a slash at its end. The
// error does not repeat the URL, which can hold a password; example is one that
// would do.
func Base(mirror, example string) (string, error) {
	u, err := url.Parse(mirror)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", Fail(ErrServer, nil, "the mirror must be a plain http or https URL like %s, without a password in it", example)
	}
	return strings.TrimRight(u.String(), "/"), nil
}

// noDowngrade keeps a transfer that began under TLS under TLS.
func noDowngrade(req *http.Request, via []*http.Request) error {
	if len(via) >= 5 {
		return errors.New("too many redirects")
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("redirected from https to %s", req.URL.Scheme)
	}
	return nil
}

// Bytes fetches a small file of at most limit bytes. what says what it should
// be ("a file of digests").
func (c *Client) Bytes(ctx context.Context, url string, limit int64, what string) ([]byte, error) {
	resp, err := c.get(ctx, url, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, status(resp, url)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, c.netError(url, err)
	}
	if int64(len(b)) > limit {
		return nil, Fail(ErrServer, nil, "%s: longer than %d bytes: not %s", url, limit, what)
	}
	return b, nil
}

// get asks for a file.
func (c *Client) get(ctx context.Context, url string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, Fail(ErrServer, err, "mirror: %v", err)
	}
	req.Header.Set("User-Agent", "smolvmm")
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.netError(url, err)
	}
	return resp, nil
}

// idleTransport fails requests when nothing comes for a while.
type idleTransport struct {
	idle time.Duration
	*http.Transport
}

func (t *idleTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	// ResponseHeaderTimeout bounds a silent server, this a network that takes
	// the packets and answers none.
	idle := time.AfterFunc(2*t.idle, func() { cancel(errIdle) })
	resp, err := t.Transport.RoundTrip(req.WithContext(ctx))
	if err != nil {
		idle.Stop()
		err = withCause(ctx, err)
		cancel(nil)
		return nil, err
	}
	idle.Reset(t.idle)
	resp.Body = &body{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, idle: idle, limit: t.idle}
	return resp, nil
}

var errIdle = errors.New("the mirror sends nothing any more")

func withCause(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errIdle) {
		return errIdle
	}
	return err
}

// body puts the idle clock back at each read.
type body struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	idle   *time.Timer
	limit  time.Duration
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.idle.Reset(b.limit)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = withCause(b.ctx, err)
	}
	return n, err
}

func (b *body) Close() error {
	b.idle.Stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

func (c *Client) netError(name string, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return Fail(ErrNetwork, err, "fetching %s was stopped: run it again to go on", name)
	}
	var u *url.Error // its text repeats the URL
	if errors.As(err, &u) {
		err = u.Err
	}
	advice := c.o.Advice
	if advice != "" {
		advice = ": without a network, " + advice
	}
	return Fail(ErrNetwork, err, "cannot fetch %s: %v%s", name, err, advice)
}

func status(resp *http.Response, url string) error {
	if resp.StatusCode == http.StatusNotFound {
		return Fail(ErrNotFound, nil, "%s was not found", url)
	}
	return Fail(ErrServer, nil, "%s: the mirror answers %d %s", url, resp.StatusCode, http.StatusText(resp.StatusCode))
}
