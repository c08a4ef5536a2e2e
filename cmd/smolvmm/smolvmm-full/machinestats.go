package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/machines"
)

const statsHelp = `smolvmm stats shows what machines use, live.

Usage: smolvmm stats [--no-stream] [NAME…]

      --no-stream      show it once
      --interval TIME  how often (default 1s)

CPU is the share of one processor since the last line, at first since the start.
`

type statsFlags struct {
	once, help bool
	interval   time.Duration
}

func (st *statsFlags) set() *pflag.FlagSet {
	f := pflag.NewFlagSet("stats", pflag.ContinueOnError)
	f.BoolVar(&st.once, "no-stream", false, "show it once")
	st.interval = time.Second
	f.Var((*cli.Duration)(&st.interval), "interval", "`TIME` between two views")
	f.BoolVarP(&st.help, "help", "h", false, "show the help")
	return f
}

func statsCommand(args []string, s cli.Streams) error {
	var o statsFlags
	names, store, done, err := verb(o.set(), args, statsHelp, 0, many, s)
	if done || err != nil {
		return err
	}
	if o.interval < 100*time.Millisecond {
		return cli.Usagef("-interval %v: at least 100ms", o.interval)
	}
	for _, name := range names {
		if _, err := store.Get(name); err != nil {
			return named(err)
		}
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	_, stop := cli.WatchSignals(ctx, cancel, nil, s)
	defer stop()
	tick := time.NewTicker(o.interval)
	defer tick.Stop()
	before := map[string]machines.View{}
	for {
		ms, err := store.List()
		if err != nil {
			return err
		}
		var b strings.Builder
		vs := views(ms, false)
		if err := statsTable(&b, vs, before, names); err != nil {
			return err
		}
		if !o.once && onScreen(s.Out) {
			fmt.Fprint(s.Out, "\x1b[H\x1b[2J") // the table stays where it is
		}
		if _, err := io.WriteString(s.Out, b.String()); err != nil || o.once {
			return err
		}
		select {
		case <-ctx.Done():
			return signalled(ctx, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// statsTable writes the table, and keeps what the next one is compared with.
func statsTable(w io.Writer, vs []machines.View, before map[string]machines.View, names []string) error {
	rows := [][]string{{"NAME", "CPU", "MEMORY", "LIMIT", "CPUS", "UPTIME"}}
	for _, v := range vs {
		if len(names) > 0 && !slices.Contains(names, v.Name) {
			continue
		}
		cpu, span := v.CPU, v.Uptime
		if b, ok := before[v.Name]; ok && b.PID == v.PID && v.Uptime > b.Uptime {
			cpu, span = v.CPU-b.CPU, v.Uptime-b.Uptime
		}
		before[v.Name] = v
		share := "-"
		if span > 0 {
			share = fmt.Sprintf("%.1f%%", 100*cpu/span)
		}
		rows = append(rows, []string{
			v.Name, share, machines.Size(v.Used), machines.Size(v.Memory), strconv.Itoa(v.CPUs),
			machines.Uptime(time.Duration(v.Uptime * float64(time.Second))),
		})
	}
	return machines.Columns(w, rows)
}

func onScreen(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && cli.IsTerminal(f)
}
