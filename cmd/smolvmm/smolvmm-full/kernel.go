package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/kernels"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/kernels/mirror"
)

const kernelHelp = `smolvmm kernel keeps NetBSD's official netbsd-MICROVM kernels at hand.

Usage: smolvmm kernel fetch [--mirror URL] [RELEASE]   (default release ` + kernels.DefaultRelease + `)
       smolvmm kernel list

A fetched kernel is checked against NetBSD's SHA-512 and kept in the user's
cache folder, where a boot without -kernel finds the newest one. Official
MICROVM kernels exist from NetBSD 11.0 on. The mirror can also be named by the
environment variable ` + mirror.MirrorVariable + `.
`

func kernelCommand(args []string, s cli.Streams) error {
	if len(args) == 0 {
		return cli.Usagef("kernel: fetch or list? (smolvmm kernel --help)")
	}
	switch args[0] {
	case "fetch":
		return kernelFetch(args[1:], s)
	case "list":
		if len(args) > 1 {
			return cli.Usagef("kernel list takes no arguments")
		}
		return kernelList(s)
	case "help":
		fmt.Fprint(s.Out, kernelHelp)
		return nil
	}
	return cli.Usagef("kernel %q: must be fetch or list%s: smolvmm kernel --help says more", args[0], cli.DidYouMean(args[0], []string{"fetch", "list"}, ""))
}

// kernelFlags are the flags of `smolvmm kernel fetch`.
func kernelFlags(o *mirror.Options, help *bool) *pflag.FlagSet {
	f := pflag.NewFlagSet("kernel fetch", pflag.ContinueOnError)
	f.StringVar(&o.Mirror, "mirror", "", "`URL` above pub/NetBSD to fetch from")
	f.BoolVarP(help, "help", "h", false, "show the help")
	return f
}

func kernelFetch(args []string, s cli.Streams) error {
	var o mirror.Options
	var help bool
	f := kernelFlags(&o, &help)
	flags, releases, err := cli.SplitWords(f, args)
	if err != nil {
		return err
	}
	if _, err := cli.Parse(f, flags); err != nil {
		return err
	}
	if help {
		fmt.Fprint(s.Out, kernelHelp)
		return nil
	}
	if len(releases) > 1 {
		return cli.Usagef("kernel fetch: one release at a time")
	}
	if o.Mirror == "" {
		o.Mirror, _ = s.Env(mirror.MirrorVariable)
	}
	rel := ""
	if len(releases) == 1 {
		rel = releases[0]
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	_, stop := cli.WatchSignals(ctx, cancel, nil, s)
	defer stop()
	bar := newBar(s.Err)
	o.Progress = bar.update
	k, err := mirror.Fetch(ctx, rel, o)
	bar.end()
	if err != nil {
		return kernelError(ctx, err)
	}
	fmt.Fprintln(s.Out, k.Path)
	return nil
}

// kernelError gives a failed fetch its exit status.
func kernelError(ctx context.Context, err error) error {
	var sig cli.SignalError
	switch {
	case errors.As(context.Cause(ctx), &sig):
		return &cli.StatusError{Status: cli.StatusSignal + int(sig.Sig), Err: err}
	case errors.Is(err, kernels.ErrRelease), errors.Is(err, kernels.ErrTooOld):
		return cli.Usagef("%w", err)
	}
	return &cli.StatusError{Status: cli.StatusFailed, Err: err}
}

func kernelList(s cli.Streams) error {
	ks, err := kernels.List("")
	if err != nil {
		return &cli.StatusError{Status: cli.StatusFailed, Err: err}
	}
	if len(ks) == 0 {
		fmt.Fprintln(s.Err, "smolvmm: no kernel is cached: smolvmm kernel fetch gets one")
		return nil
	}
	fmt.Fprintf(s.Out, "%-12s %9s  %-16s %s\n", "RELEASE", "SIZE", "SHA-512", "PATH")
	for _, k := range ks {
		sum := k.SHA512
		if sum == "" {
			sum = "(not known)"
		}
		fmt.Fprintf(s.Out, "%-12s %5.1f MiB  %-16.16s %s\n", k.Release, float64(k.Size)/(1<<20), sum, k.Path)
	}
	return nil
}

// bar draws progress on a terminal, and nothing elsewhere.
type bar struct {
	w     io.Writer
	last  time.Time
	drawn bool
}

// barEvery is how often the bar moves: often enough to be seen moving.
const barEvery = 100 * time.Millisecond

func newBar(w io.Writer) *bar {
	if l, ok := w.(*cli.LineWriter); ok {
		w = l.W
	}
	if f, ok := w.(*os.File); ok && cli.IsTerminal(f) {
		return &bar{w: w}
	}
	return &bar{}
}

func (b *bar) update(got, total int64) {
	now := time.Now()
	if b.w == nil || now.Sub(b.last) < barEvery && got != total {
		return
	}
	b.last, b.drawn = now, true
	const width = 30
	if total <= 0 {
		fmt.Fprintf(b.w, "\r%.1f MiB", float64(got)/(1<<20))
		return
	}
	n := int(min(got, total) * width / total)
	fmt.Fprintf(b.w, "\r[%s%s] %.1f of %.1f MiB", strings.Repeat("#", n), strings.Repeat(".", width-n), float64(got)/(1<<20), float64(total)/(1<<20))
}

func (b *bar) end() {
	if b.drawn {
		fmt.Fprintln(b.w)
	}
}
