package suite

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/demoguest"
	"github.com/smolvmm/smolvmm/bench/internal/figures"
)

// guestPort is where the guest's echo service listens.
const guestPort = 7

// server is a monitor with a guest that serves TCP on a published port.
type server struct {
	name string
	argv func(kernel string, port int) []string
}

// servers are smolvmm with its own network and, if asked for and there, QEMU with its own.
func (r *runner) servers() (out []server) {
	mode := fmt.Sprintf("demo=nettcp=serve,port=%d", guestPort)
	out = append(out, server{figures.Ours, func(kernel string, port int) []string {
		return []string{r.Program, "-kernel", kernel, "-m", "64", "-append", mode, "-net", "user", "-p", fmt.Sprintf("127.0.0.1:%d:%d", port, guestPort)}
	}})
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if !slices.Contains(r.Against, "qemu") || err != nil {
		return out
	}
	return append(out, server{"QEMU microvm", func(kernel string, port int) []string {
		return []string{
			qemu, "-M", "microvm,accel=kvm,acpi=off,pic=off,pit=on,rtc=on,x-option-roms=off,auto-kernel-cmdline=on", "-cpu", "host,-arch-capabilities",
			"-m", "64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", kernel, "-append", mode + ",lax",
			"-global", "virtio-mmio.force-legacy=false", "-device", "virtio-net-device,netdev=n",
			"-netdev", fmt.Sprintf("user,id=n,hostfwd=tcp:127.0.0.1:%d-:%d", port, guestPort),
		}
	}})
}

// servicePart measures from a process's start to the first answer of its guest's
// service to a client on this host.
func (r *runner) servicePart(ctx context.Context) error {
	kernel := filepath.Join(r.dir, "service.elf")
	if err := demoguest.Write(kernel); err != nil {
		return err
	}
	all := r.servers()
	fig := figures.Figure{ID: "boot/service", What: "process start → the first answer of the guest's echo service on a published port", Unit: "ms", Better: figures.Less}
	for _, s := range all {
		fig.Series = append(fig.Series, figures.Series{Subject: s.name})
	}
	for round := range r.rounds + 1 {
		for i := range all {
			at := (i + round) % len(all)
			took, err := answer(ctx, all[at], kernel)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			v := float64(took) / 1e6
			x := &fig.Series[at]
			if err != nil {
				v = math.NaN()
				if x.Failed++; x.Failure == "" {
					x.Failure = err.Error()
				}
			}
			if round > 0 {
				x.Values = append(x.Values, v)
			}
		}
		r.progress("boot, a service's first answer", round+1, r.rounds+1)
	}
	r.set.Add(fig)
	if x := fig.Series[0]; x.Failed > 0 {
		r.broken = append(r.broken, fmt.Errorf("boot: %d services of smolvmm did not answer, the first: %s", x.Failed, x.Failure))
	}
	return nil
}

// Waiting for a service: how long at most, and how long between a refusal and the
// next try, which bounds how exact the figure is.
const (
	answerLimit = 20 * time.Second
	answerPause = time.Millisecond
)

func answer(ctx context.Context, s server, kernel string) (time.Duration, error) {
	port, err := freePort()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	stderr, err := os.CreateTemp("", "bench-stderr-*")
	if err != nil {
		return 0, err
	}
	defer stderr.Close()
	if err := os.Remove(stderr.Name()); err != nil {
		return 0, err
	}
	argv := s.argv(kernel, port)
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Stdout, c.Stderr = stderr, stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	began := time.Now()
	if err := c.Start(); err != nil {
		return 0, err
	}
	gone := make(chan error, 1)
	go func() { gone <- c.Wait() }()
	defer func() {
		cancel()
		<-gone
	}()
	for {
		if err = ask(ctx, port); err == nil {
			return time.Since(began), nil
		}
		select {
		case end := <-gone:
			gone <- end
			text := make([]byte, 300)
			n, _ := stderr.ReadAt(text, 0)
			return 0, fmt.Errorf("ended (%v) before it answered; it printed %q", end, text[:n])
		case <-ctx.Done():
			return 0, fmt.Errorf("no answer in %v: %w", answerLimit, err)
		case <-time.After(answerPause):
		}
	}
}

// ask sends a byte to the guest's echo service and takes it back.
func ask(ctx context.Context, port int) error {
	c, err := new(net.Dialer).DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if _, err := io.WriteString(c, "echo\nx"); err != nil {
		return err
	}
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return err
	}
	if b[0] != 'x' {
		return errors.New("another answer than what was asked")
	}
	return nil
}

// freePort is one of the loopback's that nobody has at the moment.
func freePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
