package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/kernels"
	"github.com/smolvmm/smolvmm/vmm"
)

// boot is `smolvmm -kernel …`.
func boot(args []string, s streams) error {
	var b bootFlags
	rest, err := parse(b.set(), args)
	switch {
	case err != nil:
		return err
	case b.help:
		fmt.Fprint(s.out, helpText)
		return nil
	case b.version:
		return version(nil, s)
	case len(args) == 0:
		fmt.Fprint(s.err, helpText)
		return &statusError{status: statusUsage}
	}
	cfg, err := b.config(rest, s)
	if err != nil {
		return err
	}
	return runMachine(cfg, runOptions{console: b.console, confine: b.confine, timeout: b.timeout}, s)
}

// config turns flags into a machine's configuration.
func (b *bootFlags) config(argv []string, s streams) (vmm.Config, error) {
	cfg := vmm.Config{
		Cmdline: b.append, CPUs: b.cpus, CPU: b.cpu, HugePages: b.hugepages,
	}
	var err error
	if cfg.Memory, err = parseSize(b.memory); err != nil {
		return cfg, err
	}
	switch b.net {
	case "none":
	case "user":
		return cfg, usagef("-net user: this build has no network yet; leave the flag out or give -net none")
	default:
		return cfg, usagef("-net %q: must be none or user", b.net)
	}
	if b.timeout < 0 {
		return cfg, usagef("-timeout %v: must not be negative", b.timeout)
	}
	if b.kernel == "" {
		k, err := kernels.Find("", "")
		if err != nil {
			return cfg, usagef("no -kernel given, and %w", err)
		}
		b.kernel = k.Path
	}
	cfg.Kernel.Path = b.kernel
	for _, p := range b.initrds {
		cfg.Initrds = append(cfg.Initrds, vmm.File{Path: p})
	}
	for _, d := range b.disks {
		o, err := parseDisk(d)
		if err != nil {
			return cfg, err
		}
		cfg.Disks = append(cfg.Disks, o)
	}
	if cfg.Items, err = b.items(s.env); err != nil {
		return cfg, err
	}
	if len(argv) > 0 {
		init, err := json.Marshal(map[string]any{"argv": argv})
		if err != nil {
			return cfg, err
		}
		it, err := item("--", itemInit, init)
		if err != nil {
			return cfg, err
		}
		cfg.Items = append(cfg.Items, it)
	}
	level := slog.LevelWarn
	if b.verbose {
		level = slog.LevelDebug
	}
	cfg.Log = slog.New(slog.NewTextHandler(s.err, &slog.HandlerOptions{Level: level, ReplaceAttr: withoutTime}))
	if b.trace {
		cfg.Trace = s.err
	}
	return cfg, nil
}

// withoutTime leaves the time out of log lines: they go to a person who is
// looking, and the local time zone could not be read in a confined process.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// Causes of an end that the user or the host brought about.
var (
	errQuit    = errors.New("quit from the console")
	errTimeout = errors.New("time is up")
)

// signalError is the cause when a signal ends the machine.
type signalError struct{ sig syscall.Signal }

func (e signalError) Error() string { return "signal: " + unix.SignalName(e.sig) }

// runOptions are what a run takes besides the machine's configuration.
type runOptions struct {
	console, confine string
	timeout          time.Duration
	after            func(*vmm.Machine) // called when the guest has ended
}

// gate holds a reader's first Read back until ready is closed: keys typed at
// once would reach for a machine that is not there yet.
type gate struct {
	in    io.Reader
	ready <-chan struct{}
}

func (g gate) Read(p []byte) (int, error) {
	<-g.ready
	return g.in.Read(p)
}

// runMachine builds and runs a machine on a console, and gives the process's
// exit status as an error. The terminal is restored on every way out.
func runMachine(cfg vmm.Config, o runOptions, s streams) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	var m *vmm.Machine
	con, err := openConsole(o.console, s, func(key byte) {
		switch key {
		case keyQuit:
			cancel(errQuit)
		case keyBreak:
			m.InjectBreak()
		case keyHelp:
			fmt.Fprint(s.out, escapeHelp)
		}
	})
	if err != nil {
		return err
	}
	defer con.close()
	if con.note != "" {
		fmt.Fprintln(s.err, "smolvmm: "+con.note)
	}
	if err := confinement(&cfg, o.confine, o.console); err != nil {
		return err
	}

	// From here on signals end the machine, not the process, so that the
	// terminal is restored. The console's input begins to be read in New.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	go func() {
		select {
		case sig := <-signals:
			cancel(signalError{sig.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	restore := func() {}
	if o.console == "stdio" {
		if restore, err = rawTerminal(s.in); err != nil {
			return fmt.Errorf("terminal: %w", err)
		}
	}
	defer restore()

	ready := make(chan struct{})
	cfg.ConsoleOut = con.out
	if con.in != nil {
		cfg.ConsoleIn = gate{con.in, ready}
	}
	m, err = vmm.New(cfg)
	close(ready)
	if err != nil {
		return err
	}
	defer m.Close()
	if o.timeout > 0 {
		t := time.AfterFunc(o.timeout, func() { cancel(fmt.Errorf("%w after %v", errTimeout, o.timeout)) })
		defer t.Stop()
	}
	exit, err := m.Run(ctx)
	restore()
	if err != nil {
		return err
	}
	if o.after != nil {
		o.after(m)
	}
	return statusOf(exit)
}

// statusOf maps a machine's end to the process's exit status and last words.
func statusOf(e vmm.Exit) error {
	var sig signalError
	end := &statusError{err: errors.New(e.String())}
	switch e.End {
	case vmm.EndExit:
		if e.Status == 0 {
			return nil
		}
		// The status is the guest command's own: it has said what it had to say.
		return &statusError{status: e.Status}
	case vmm.EndReboot:
		end.status = statusReboot
	case vmm.EndTripleFault:
		end.status = statusTripleFault
	case vmm.EndInternalError, vmm.EndEntryFailed:
		end.status = statusInternalError
	case vmm.EndStopped:
		switch {
		case errors.Is(e.Cause, errQuit):
			end.status = statusQuit
		case errors.Is(e.Cause, errTimeout):
			end.status = statusTimeout
		case errors.As(e.Cause, &sig):
			end.status = statusSignal + int(sig.sig)
		default:
			end.status = statusMonitor
		}
	default:
		end.status = statusMonitor
	}
	return end
}
