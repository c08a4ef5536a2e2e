package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/machines"
	"github.com/smolvmm/smolvmm/vmm/client"
)

const psHelp = `smolvmm ps lists machines.

Usage: smolvmm ps [flags]

  -a, --all            those that have ended, too
  -q, --quiet          names only
      --format FORM    table (default) or json, one array

States: starting, running, ready (the guest said so), paused, ended (with the
exit status), dead (its process was killed: smolvmm cleanup removes it).
CPU is the share of one processor since the start, MEMORY what of the guest's
is in the host's RAM, with the monitor's own.
`

type psFlags struct {
	all, quiet, help bool
	format           string
}

func (p *psFlags) set() *pflag.FlagSet {
	f := pflag.NewFlagSet("ps", pflag.ContinueOnError)
	f.BoolVarP(&p.all, "all", "a", false, "those that have ended, too")
	f.BoolVarP(&p.quiet, "quiet", "q", false, "names only")
	f.StringVar(&p.format, "format", "table", "`FORM`: table or json")
	f.BoolVarP(&p.help, "help", "h", false, "show the help")
	return f
}

const inspectHelp = `smolvmm inspect shows all that is known of machines, as JSON.

Usage: smolvmm inspect NAME…

Values of variables and secrets are not kept, and so not shown.
`

const waitHelp = `smolvmm wait waits for machines to end and prints their exit statuses.

Usage: smolvmm wait NAME…

Its own exit status is the last machine's.
`

const logsHelp = `smolvmm logs shows what a machine has printed on its console.

Usage: smolvmm logs [flags] NAME

  -f, --follow         go on until the machine has ended
      --since TIME     from then on: 10m (ago), or 2026-01-02T15:04:05Z
  -n, --tail N         the last N lines
  -t, --timestamps     a time before each line
      --monitor        what its process had to say, not the guest

The log is bounded: at least the last 2 MiB are kept.
`

type logsFlags struct {
	follow, times, monitor, help bool
	since                        string
	tail                         int
}

func (l *logsFlags) set() *pflag.FlagSet {
	f := pflag.NewFlagSet("logs", pflag.ContinueOnError)
	f.BoolVarP(&l.follow, "follow", "f", false, "go on until the machine has ended")
	f.StringVar(&l.since, "since", "", "from `TIME` on: 10m (ago), or 2026-01-02T15:04:05Z")
	f.IntVarP(&l.tail, "tail", "n", -1, "the last `N` lines")
	f.BoolVarP(&l.times, "timestamps", "t", false, "a time before each line")
	f.BoolVar(&l.monitor, "monitor", false, "what its process had to say")
	f.BoolVarP(&l.help, "help", "h", false, "show the help")
	return f
}

// helpOnly is the flags of a command that has none but -h.
func helpOnly(name string) func() *pflag.FlagSet {
	return func() *pflag.FlagSet {
		f := pflag.NewFlagSet(name, pflag.ContinueOnError)
		f.BoolP("help", "h", false, "show the help")
		return f
	}
}

// verb reads the flags and names of a command, shows its help if asked to, and
// opens the store. most bounds the names; done says that there is no more to do.
func verb(f *pflag.FlagSet, args []string, help string, least, most int, s cli.Streams) (names []string, store *machines.Store, done bool, err error) {
	flags, words, err := cli.SplitWords(f, args)
	if err != nil {
		return nil, nil, false, err
	}
	if _, err := cli.Parse(f, flags); err != nil {
		return nil, nil, false, err
	}
	if asked, _ := f.GetBool("help"); asked {
		fmt.Fprint(s.Out, help)
		return nil, nil, true, nil
	}
	switch {
	case len(words) < least:
		return nil, nil, false, cli.Usagef("%s: which machine? smolvmm ps -a lists them", f.Name())
	case len(words) > most:
		return nil, nil, false, cli.Usagef("%s: %q: too many words (smolvmm help %s)", f.Name(), words[most], f.Name())
	}
	store, err = machines.Open(s.Env)
	return words, store, false, err
}

// many is as many names as one likes.
const many = 1 << 20

// each does something for each machine, and goes on after an error.
func each(names []string, s cli.Streams, do func(name string) error) error {
	var last error
	for _, name := range names {
		if err := do(name); err != nil {
			if last != nil {
				cli.Complain(s, last)
			}
			last = named(err)
		}
	}
	return last
}

// named makes errors about machines the user's to mend.
func named(err error) error {
	var running *machines.RunningError
	if errors.Is(err, machines.ErrNone) || errors.Is(err, machines.ErrName) || errors.As(err, &running) {
		return cli.Usagef("%w", err)
	}
	return err
}

func psCommand(args []string, s cli.Streams) error {
	var p psFlags
	_, store, done, err := verb(p.set(), args, psHelp, 0, 0, s)
	if done || err != nil {
		return err
	}
	if p.format != "table" && p.format != "json" {
		return cli.Usagef("-format %q: must be table or json", p.format)
	}
	ms, err := store.List()
	if err != nil {
		return err
	}
	vs := views(ms, p.all)
	switch {
	case p.quiet:
		for _, v := range vs {
			fmt.Fprintln(s.Out, v.Name)
		}
		return nil
	case p.format == "json":
		return printJSON(s.Out, vs)
	}
	return machines.Table(s.Out, vs)
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false) // "->" is to be read
	return e.Encode(v)
}

// inspected is a machine as inspect shows it.
type inspected struct {
	machines.View
	Spec machines.Spec `json:"spec"`
}

func inspectCommand(args []string, s cli.Streams) error {
	names, store, done, err := verb(helpOnly("inspect")(), args, inspectHelp, 1, many, s)
	if done || err != nil {
		return err
	}
	out := []inspected{}
	err = each(names, s, func(name string) error {
		m, err := store.Get(name)
		if err == nil {
			out = append(out, inspected{views([]*machines.Machine{m}, true)[0], m.Spec})
		}
		return err
	})
	return errors.Join(printJSON(s.Out, out), err)
}

func logsCommand(args []string, s cli.Streams) error {
	var l logsFlags
	f := l.set()
	names, store, done, err := verb(f, args, logsHelp, 1, 1, s)
	if done || err != nil {
		return err
	}
	o := machines.LogOptions{Follow: l.follow, Tail: l.tail, Times: l.times}
	if f.Changed("tail") && l.tail < 0 {
		return cli.Usagef("-tail %d: must be a number of lines", l.tail)
	}
	if l.monitor {
		o.Stream = machines.Monitor
	}
	if o.Since, err = parseSince(l.since, time.Now()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	_, stop := cli.WatchSignals(ctx, cancel, nil, s)
	defer stop()
	return named(signalled(ctx, store.Logs(ctx, names[0], o, s.Out)))
}

// signalled gives a command that a signal ended its status, without a word.
func signalled(ctx context.Context, err error) error {
	var sig cli.SignalError
	if err != nil && errors.As(context.Cause(ctx), &sig) {
		return &cli.StatusError{Status: cli.StatusSignal + int(sig.Sig)}
	}
	return err
}

// parseSince reads a time: how long ago, or RFC 3339.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	var ago cli.Duration
	if ago.Set(s) == nil {
		return now.Add(-time.Duration(ago)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, cli.Usagef("-since %q: must be a length of time like 10m, or a time like 2026-01-02T15:04:05Z", s)
}

func waitCommand(args []string, s cli.Streams) error {
	names, store, done, err := verb(helpOnly("wait")(), args, waitHelp, 1, many, s)
	if done || err != nil {
		return err
	}
	status := 0
	err = each(names, s, func(name string) error {
		if _, err := store.Get(name); err != nil {
			return err
		}
		v, err := store.Outcome(name)
		if err != nil {
			return err
		}
		status = cli.StatusMonitor // one that was killed has none
		if v.Status != nil {
			status = *v.Status
		}
		fmt.Fprintln(s.Out, strconv.Itoa(status))
		return nil
	})
	if err == nil && status != 0 {
		err = &cli.StatusError{Status: status}
	}
	return err
}

// views tells of machines, of those that are over only with all.
func views(ms []*machines.Machine, all bool) []machines.View {
	vs := []machines.View{}
	now := time.Now()
	for _, m := range ms {
		if m.Alive || all {
			vs = append(vs, m.View(now))
		}
	}
	states(vs)
	return vs
}

// states asks the machines that run whether they are paused, all at once: one that
// does not answer holds up the others for no longer than itself.
func states(vs []machines.View) {
	ctx, cancel := context.WithTimeout(context.Background(), askPatience)
	defer cancel()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range vs {
		v := &vs[i]
		if v.State != machines.Running {
			continue
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if info, err := client.New(v.Socket).Info(ctx); err == nil && info.State == client.Paused {
				v.State = machines.Paused
			}
		})
	}
	wg.Wait()
}
