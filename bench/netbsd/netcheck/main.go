// Command netcheck tries what a guest's network must be able to do: bytes both
// ways by HTTP with their checksums, a server that the host reaches, names,
// datagrams and echoes. It prints a line for each and exits with the status
// that it is told to, or 1 when something is wrong.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/smolvmm/smolvmm/bench/netbsd/peer"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout)) }

// check is one thing to try.
type check struct {
	name string
	arg  *string // empty: not asked for
	try  func(arg string) (string, error)
}

func run(args []string, out io.Writer) int {
	fl := flag.NewFlagSet("netcheck", flag.ContinueOnError)
	fl.SetOutput(out)
	status := fl.Int("status", 0, "exit status if all is well")
	size := fl.Int64("size", 100<<20, "bytes that go each way")
	served := fl.Int64("served", 4<<20, "bytes that -serve gives")
	limit := fl.Duration("limit", 2*time.Minute, "how long one check may take")
	arg := func(name, what string) *string { return fl.String(name, "", what) }
	var checks []check
	add := func(name, what string, try func(ctx context.Context, arg string) (string, error)) {
		checks = append(checks, check{name, arg(name, what), func(a string) (string, error) {
			ctx, cancel := context.WithTimeout(context.Background(), *limit)
			defer cancel()
			return try(ctx, a)
		}})
	}
	add("resolv", "TEXT that must be in /etc/resolv.conf", checkResolv)
	add("lookup", "NAME=ADDRESS that the name server must give", checkLookup)
	add("ping", "ADDRESS that must answer an echo request", checkPing)
	add("nopong", "ADDRESS that must not answer an echo request", checkNoPong)
	add("refused", "HOST:PORT whose connection must be refused", checkRefused)
	add("closed", "HOST:PORT that must not be reached, however", checkClosed)
	add("echo", "HOST:PORT of a UDP server that gives back what it gets", checkEcho)
	add("half", "HOST:PORT of a TCP server that answers after the end of what it gets", checkHalf)
	add("get", "URL of the bytes, or several with commas", func(ctx context.Context, url string) (string, error) { return each(ctx, url, *size, get) })
	add("put", "URL that takes the bytes and answers with their checksum", func(ctx context.Context, url string) (string, error) { return each(ctx, url, *size, put) })
	add("many", "URL to fetch 200 times by connections of their own", checkMany)
	add("serve", "ADDRESS to serve the bytes at, until someone asks for /end", func(ctx context.Context, a string) (string, error) { return serve(ctx, out, a, *served) })
	if err := fl.Parse(args); err != nil {
		return 1
	}
	tried, failed := 0, 0
	for _, c := range checks {
		if *c.arg == "" {
			continue
		}
		begun := time.Now()
		said, err := c.try(*c.arg)
		if err != nil {
			fmt.Fprintf(out, "netcheck: %s: FAILED: %v\n", c.name, err)
			failed++
			continue
		}
		fmt.Fprintf(out, "netcheck: %s: %s (%v)\n", c.name, said, time.Since(begun).Round(time.Millisecond))
		tried++
	}
	if failed > 0 {
		return 1
	}
	fmt.Fprintf(out, "netcheck: ok, %d checks, status %d\n", tried, *status)
	return *status
}

func checkResolv(_ context.Context, want string) (string, error) {
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return "", err
	}
	if !strings.Contains(string(b), want) {
		return "", fmt.Errorf("%q lacks %q", b, want)
	}
	return fmt.Sprintf("%q", b), nil
}

func checkLookup(ctx context.Context, arg string) (string, error) {
	var said []string
	for _, one := range strings.Split(arg, ",") {
		name, want, ok := strings.Cut(one, "=")
		if !ok {
			return "", errors.New("want NAME=ADDRESS")
		}
		got, err := net.DefaultResolver.LookupHost(ctx, name)
		if err != nil {
			return "", err
		}
		if !slices.Contains(got, want) {
			return "", fmt.Errorf("%s is %v, not %s", name, got, want)
		}
		said = append(said, fmt.Sprintf("%s is %v", name, got))
	}
	return strings.Join(said, ", "), nil
}

func checkRefused(ctx context.Context, addr string) (string, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err == nil {
		c.Close()
		return "", fmt.Errorf("%s took the connection", addr)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return "", err
	}
	return addr, nil
}

func checkClosed(ctx context.Context, addr string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err == nil {
		c.Close()
		return "", fmt.Errorf("%s took the connection", addr)
	}
	return err.Error(), nil
}

// checkEcho sends datagrams of several sizes, each again where it or its answer
// is lost.
func checkEcho(ctx context.Context, addr string) (string, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	lost, buf := 0, make([]byte, 65536)
	sizes := []int{1, 512, 1472, 1473, 4000, 8000}
	for _, size := range sizes {
		sent := make([]byte, size)
		_, _ = io.ReadFull(peer.Bytes(), sent)
		sent[0] = byte(size) // an answer that comes late is another one's
		for try := 0; ; try++ {
			if _, err := c.Write(sent); err != nil {
				return "", fmt.Errorf("%d bytes: %w", size, err)
			}
			if err := c.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
				return "", err
			}
			n, err := c.Read(buf)
			if err == nil && string(buf[:n]) == string(sent) {
				break
			}
			lost++
			if try == 3 {
				return "", fmt.Errorf("%d bytes: sent %d times, no such answer: %v", size, try+1, err)
			}
		}
	}
	return fmt.Sprintf("%v bytes, %d lost", sizes, lost), nil
}

// checkHalf ends its own direction and reads what comes only then.
func checkHalf(ctx context.Context, addr string) (string, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "half"); err != nil {
		return "", err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return "", err
	}
	if string(got) != "half" {
		return "", fmt.Errorf("got %q", got)
	}
	return "answered after the end", nil
}

// each does one thing for every URL in a list.
func each(ctx context.Context, list string, size int64, one func(context.Context, string, int64) (string, error)) (string, error) {
	var said []string
	for _, url := range strings.Split(list, ",") {
		begun := time.Now()
		s, err := one(ctx, url, size)
		if err != nil {
			return "", fmt.Errorf("%s: %w", url, err)
		}
		said = append(said, fmt.Sprintf("%s, %.1f MB/s", s, float64(size)/1e6/time.Since(begun).Seconds()))
	}
	return strings.Join(said, "; "), nil
}

func get(ctx context.Context, url string, size int64) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	h := sha256.New()
	n, err := io.Copy(h, resp.Body)
	if err != nil {
		return "", fmt.Errorf("after %d bytes: %w", n, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); resp.StatusCode != http.StatusOK || n != size || got != peer.Sum(size) {
		return "", fmt.Errorf("%s, %d bytes, SHA-256 %s; want %d bytes, %s", resp.Status, n, got, size, peer.Sum(size))
	}
	return fmt.Sprintf("%d bytes, SHA-256 as it should be", n), nil
}

func put(ctx context.Context, url string, size int64) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, url, io.LimitReader(peer.Bytes(), size))
	if err != nil {
		return "", err
	}
	req.ContentLength = size
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if err != nil {
		return "", err
	}
	if want := peer.Sum(size); resp.StatusCode != http.StatusOK || string(got) != want {
		return "", fmt.Errorf("%s, the server got %s; want %s", resp.Status, got, want)
	}
	return fmt.Sprintf("%d bytes, SHA-256 as it should be", size), nil
}

func checkMany(ctx context.Context, url string) (string, error) {
	const count, together = 200, 20
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	work, errs := make(chan struct{}, count), make(chan error, together)
	for range count {
		work <- struct{}{}
	}
	close(work)
	for range together {
		go func() {
			for range work {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
				if err == nil {
					var resp *http.Response
					if resp, err = client.Do(req); err == nil {
						_, err = io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
				}
				if err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	var all error
	for range together {
		all = errors.Join(all, <-errs)
	}
	return fmt.Sprintf("%d connections, %d at a time", count, together), all
}

func serve(ctx context.Context, out io.Writer, addr string, size int64) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	ctx, end := context.WithCancelCause(ctx)
	asked := errors.New("asked to end")
	srv := &http.Server{Handler: peer.Handler(size, func() { end(asked) })}
	fmt.Fprintf(out, "netcheck: serving at %v\n", l.Addr())
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return "", err
	case <-ctx.Done():
	}
	if !errors.Is(context.Cause(ctx), asked) {
		return "", fmt.Errorf("nobody asked for /end: %w", context.Cause(ctx))
	}
	// The answer to /end is still on its way.
	last, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return "served until /end", srv.Shutdown(last)
}
