package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/build"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/machines"
)

const buildHelp = `smolvmm build makes a bootable NetBSD image from a Dockerfile.

Usage: smolvmm build [flags] [FOLDER]
       smolvmm build [flags] --go PACKAGE

FOLDER is what COPY and ADD see (default: this one); its Dockerfile or
SMOLerfile is built. The image goes to the store, for smolvmm run, and its name
is printed.

  -t, --tag NAME[:TAG]   the image's name; repeatable (default: LABEL
                         smolbsd.service, else the folder's name)
  -f, --file FILE        another Dockerfile; - is standard input
      --go PACKAGE       an image of a Go program alone, as ./cmd/hello
      --build-arg K[=V]  a value for an ARG; repeatable
      --target STAGE     build this stage and what it needs
      --no-cache         do every step again
      --secret ID[=@FILE]    what RUN --mount=type=secret,id=ID sees
  -o, --output FILE      write the disk image there, and nothing to the store
      --size SIZE        of the disk image: 512M, 2G (default: by its content)
      --sets FOLDER      take base.tar.xz and so on from there
      --mirror URL       above pub/NetBSD, to fetch sets from
      --packages URL     above pub/pkgsrc, for LABEL smolbsd.addpkgs
      --allow-unchecked  ADD may fetch URLs without --checksum
      --progress HOW     auto, plain or quiet (default auto)
  -k, --kernel FILE      kernel for RUN (default: newest fetched one)
  -m, --memory SIZE      of RUN's machine (default 512M)
  -c, --cpus N           of RUN's machine (default 1)
      --timeout TIME     for each RUN: 10m
      --egress RULE      where RUN may go: deny-all, allow NAME; repeatable
      --egress-file FILE     more rules, one a line
  -h, --help             show the help

A build arg or variable SOURCE_DATE_EPOCH bounds all times in the image. The
release of NetBSD is the build arg NETBSD_RELEASE.

  smolvmm build -t web .                smolvmm build --go ./cmd/hello -t hello
  smolvmm build -f smolerfiles/Dockerfile.caddy
`

// buildFlags are the flags of `smolvmm build`.
type buildFlags struct {
	build.Options
	memory, size string
	help         bool
}

func (b *buildFlags) set() *pflag.FlagSet {
	f := pflag.NewFlagSet("build", pflag.ContinueOnError)
	f.StringArrayVarP(&b.Tags, "tag", "t", nil, "the image's `NAME`; repeatable")
	f.StringVarP(&b.File, "file", "f", "", "the Dockerfile `FILE`; - is standard input")
	f.StringVar(&b.Go, "go", "", "an image of the Go program of `PACKAGE` alone")
	f.StringArrayVar(&b.Args, "build-arg", nil, "a value for an ARG, `K=V`; repeatable")
	f.StringVar(&b.Target, "target", "", "build `STAGE` and what it needs")
	f.BoolVar(&b.NoCache, "no-cache", false, "do every step again")
	f.StringArrayVar(&b.Secrets, "secret", nil, "`ID` of a secret from the environment, or ID=@FILE; repeatable")
	f.StringVarP(&b.Output, "output", "o", "", "write the disk image to `FILE`")
	f.StringVar(&b.size, "size", "", "`SIZE` of the disk image")
	f.StringVar(&b.Sets, "sets", "", "`FOLDER` with sets")
	f.StringVar(&b.Mirror, "mirror", "", "`URL` above pub/NetBSD to fetch sets from")
	f.StringVar(&b.Packages, "packages", "", "`URL` above pub/pkgsrc to fetch packages from")
	f.BoolVar(&b.Unchecked, "allow-unchecked", false, "ADD may fetch URLs without a checksum")
	f.StringVar(&b.Progress, "progress", "auto", "`HOW` progress is shown: auto, plain or quiet")
	f.StringVarP(&b.Kernel, "kernel", "k", "", "kernel `FILE` for RUN")
	f.StringVarP(&b.memory, "memory", "m", "", "`SIZE` of the RAM of RUN's machine")
	f.IntVarP(&b.CPUs, "cpus", "c", 1, "`N` CPUs of RUN's machine")
	f.DurationVar(&b.Timeout, "timeout", 0, "`TIME` that each RUN has")
	f.StringArrayVar(&b.Net.Egress, "egress", nil, "`RULE` of where RUN may go; repeatable")
	f.StringVar(&b.Net.EgressFile, "egress-file", "", "`FILE` with more rules")
	f.BoolVarP(&b.help, "help", "h", false, "show the help")
	return f
}

// buildCommand is `smolvmm build`.
func buildCommand(args []string, s cli.Streams) error {
	var b buildFlags
	f := b.set()
	flags, words, err := cli.SplitWords(f, args)
	if err != nil {
		return err
	}
	if _, err := cli.Parse(f, flags); err != nil {
		return err
	}
	if b.help {
		fmt.Fprint(s.Out, buildHelp)
		return nil
	}
	switch {
	case len(words) > 1:
		return cli.Usagef("build: one folder at a time")
	case len(words) == 1:
		b.Context = words[0]
	}
	if b.memory != "" {
		if b.Memory, err = cli.ParseSize(b.memory); err != nil {
			return err
		}
	}
	if b.CPUs < 1 || b.CPUs > 32 {
		return cli.Usagef("-cpus %d: must be 1 to 32", b.CPUs)
	}
	if b.size != "" {
		n, err := cli.ParseSize(b.size)
		if err != nil {
			return cli.Usagef("-size %q: give a size like 512M or 2G", b.size)
		}
		b.Size = int64(n)
	}
	data, err := machines.DataFolder(s.Env)
	if err != nil {
		return cli.Usagef("%w", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return cli.Usagef("no folder for the build cache: %w: set HOME or XDG_CACHE_HOME", err)
	}
	b.Images, b.Cache = filepath.Join(data, "images"), filepath.Join(cache, "smolvmm")
	b.Env, b.In, b.Out, b.Err = s.Env, s.In, s.Out, s.Err
	if l, ok := s.Err.(*cli.LineWriter); ok {
		if t, ok := l.W.(*os.File); ok && cli.IsTerminal(t) {
			b.Err = t
			if b.Terminal, _, err = term.GetSize(int(t.Fd())); err != nil {
				b.Terminal = 80
			}
		}
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	_, stop := cli.WatchSignals(ctx, cancel, nil, s)
	defer stop()
	err = build.Run(ctx, b.Options)
	var sig cli.SignalError
	var usage *build.UsageError
	switch {
	case err == nil:
		return nil
	case errors.As(context.Cause(ctx), &sig):
		return &cli.StatusError{Status: cli.StatusSignal + int(sig.Sig), Err: err}
	case errors.As(err, &usage):
		return &cli.UsageError{Err: err}
	}
	return &cli.StatusError{Status: cli.StatusFailed, Err: err}
}
