package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/demoguest"
)

// limit is the longest that one run may take.
const limit = 2 * time.Minute

// Sample is what one run showed.
type Sample struct {
	MBits  float64 `json:"mbit_s,omitempty"`       // up, down: 10^6 bit/s
	Trip   float64 `json:"round_trip,omitempty"`   // rr: µs, mean of all
	P50    float64 `json:"p50,omitempty"`          // rr: µs, as the guest saw it
	P99    float64 `json:"p99,omitempty"`          // rr: µs, as the guest saw it
	Conns  float64 `json:"connections,omitempty"`  // conn: a second
	CPU    float64 `json:"cpu_s_per_gb,omitempty"` // processor time of monitor, guest and helper, for 10^9 bytes
	Report string  `json:"report"`                 // the guest's line
}

// start runs one machine under one load.
func start(ctx context.Context, s Subject, l Load, kernel string) (out Sample, err error) {
	dir, err := os.MkdirTemp("", "smolvmm-net-")
	if err != nil {
		return out, err
	}
	defer os.RemoveAll(dir)
	srv, err := serve(l.Kind, l.N)
	if err != nil {
		return out, err
	}
	defer srv.close()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var helper *exec.Cmd
	if s.helper != nil {
		if helper, err = startHelper(ctx, s.helper(dir), dir); err != nil {
			return out, err
		}
		defer func() {
			_ = helper.Process.Kill()
			_ = helper.Wait()
		}()
	}
	g := guest{kernel: kernel, mode: fmt.Sprintf(l.mode(srv.port()), s.gateway), dir: dir, port: srv.port(), mtu: l.MTU}
	argv := s.argv(g)
	var console, stderr bytes.Buffer
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Stdout, c.Stderr = &console, &stderr
	err = c.Run()
	if err = ended(c, err, s.status); err != nil {
		return out, fmt.Errorf("%w; it printed %q %q", err, last(console.Bytes()), last(stderr.Bytes()))
	}
	report := demoguest.Report(console.Bytes(), "nettcp")
	if fail := demoguest.Failure(console.Bytes()); fail != "" || report == "" {
		return out, fmt.Errorf("the guest's report: %q", last(console.Bytes()))
	}
	// A monitor that ends may leave the server waiting for a connection that was never made.
	srv.close()
	r := <-srv.done
	if r.err != nil {
		return out, fmt.Errorf("the host's side: %w", r.err)
	}
	used := c.ProcessState.UserTime() + c.ProcessState.SystemTime()
	if helper != nil {
		_ = helper.Process.Signal(syscall.SIGTERM)
		_ = helper.Wait()
		used += helper.ProcessState.UserTime() + helper.ProcessState.SystemTime()
	}
	return sampleOf(l.Kind, r, used, report)
}

// sampleOf turns what was seen into numbers.
func sampleOf(k Kind, r result, used time.Duration, report string) (out Sample, err error) {
	out.Report = report
	switch k {
	case Up, Down:
		out.MBits = float64(r.bytes) * 8 / r.took.Seconds() / 1e6
		out.CPU = used.Seconds() / (float64(r.bytes) / 1e9)
	case RoundTrips:
		out.Trip = r.took.Seconds() * 1e6 / float64(r.times)
		if out.P50, err = demoguest.Field(report, "p50_us"); err == nil {
			out.P99, err = demoguest.Field(report, "p99_us")
		}
	case Connections:
		out.Conns = float64(r.times) / r.took.Seconds()
	}
	return out, err
}

// ended tells a process that ended as it should from one that did not.
func ended(c *exec.Cmd, err error, status int) error {
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	if got := c.ProcessState.ExitCode(); got != status {
		return fmt.Errorf("%s: %v, status %d wanted", filepath.Base(c.Path), c.ProcessState, status)
	}
	return nil
}

// startHelper starts a process and waits until its socket is there.
func startHelper(ctx context.Context, argv []string, dir string) (*exec.Cmd, error) {
	in, err := watchDir(dir)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if err := c.Start(); err != nil {
		return nil, err
	}
	if err := in.SetReadDeadline(time.Now().Add(10 * time.Second)); err == nil {
		var event [4096]byte
		_, err = in.Read(event[:])
	}
	if err != nil {
		_ = c.Process.Kill()
		_ = c.Wait()
		return nil, fmt.Errorf("%s: waiting for its socket: %w", argv[0], err)
	}
	return c, nil
}

// last is the end of an output, for an error.
func last(b []byte) []byte {
	const most = 300
	return b[max(0, len(b)-most):]
}
