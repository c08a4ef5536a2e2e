package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/smolvmm/smolvmm/bench/testimg"
)

// builds are runs of `smolvmm build`.
type builds struct {
	program int64 // bytes: the program that an image is made for
	image   int64 // bytes that the image of it has on the host's disk
	beside  int64 // bytes of it that are smolinit's

	scratch, cached []float64 // ms: that image, anew; the folder's, unchanged
	first           float64   // ms: the folder's, the first time
}

// ratio is what the image has, of what is in it.
func (b builds) ratio() float64 { return float64(b.image) / float64(b.program+b.beside) }

// commands measures `smolvmm build`: an image of a program and nothing else,
// without the cache, and an image of the folder that has been built before.
func (o *options) commands(ctx context.Context, dir, folder string) (b builds, err error) {
	smolvmm := o.smolvmm
	if smolvmm == "" {
		smolvmm = filepath.Join(dir, "smolvmm")
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", smolvmm, testimg.Module+"/cmd/smolvmm/smolvmm-full")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
		if said, err := cmd.CombinedOutput(); err != nil {
			return b, fmt.Errorf("building smolvmm: %w\n%s", err, said)
		}
	}
	program, err := testimg.Program(ctx, testimg.Module+"/bench/build/ffscheck")
	if err != nil {
		return b, err
	}
	smolinit, err := testimg.Program(ctx, testimg.Module+"/cmd/smolinit")
	if err != nil {
		return b, err
	}
	b.program, b.beside = int64(len(program)), int64(len(smolinit))
	one, all := filepath.Join(dir, "one"), filepath.Join(dir, "all")
	if err := errors.Join(os.Mkdir(one, 0o755), os.Mkdir(all, 0o755), os.WriteFile(filepath.Join(one, "program"), program, 0o755),
		os.WriteFile(filepath.Join(one, "Dockerfile"), []byte("FROM scratch\nCOPY program /bin/program\nCMD [\"/bin/program\"]\n"), 0o644),
		os.Rename(folder, filepath.Join(all, "tree")),
		os.WriteFile(filepath.Join(all, "Dockerfile"), []byte("FROM scratch\nCOPY tree/0 /srv/0\nCOPY tree /tree\nENV A=b\n"), 0o644),
	); err != nil {
		return b, err
	}
	build := func(args ...string) (float64, error) {
		cmd := exec.CommandContext(ctx, smolvmm, append([]string{"build", "--progress", "quiet"}, args...)...)
		cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+filepath.Join(dir, "data"), "XDG_CACHE_HOME="+filepath.Join(dir, "cache"))
		begin := time.Now()
		said, err := cmd.CombinedOutput()
		took := float64(time.Since(begin)) / 1e6
		if err != nil {
			err = fmt.Errorf("smolvmm build: %w\n%s", err, said)
		}
		return took, err
	}
	// What smolvmm makes for itself, smolinit, is there from the first build on.
	if _, err := build("-t", "one", one); err != nil {
		return b, err
	}
	if b.first, err = build("-t", "all", all); err != nil {
		return b, err
	}
	img := filepath.Join(dir, "one.img")
	for range o.rounds {
		took, err := build("--no-cache", "-o", img, one)
		if err != nil {
			return b, err
		}
		b.scratch = append(b.scratch, took)
		if took, err = build("-t", "all", all); err != nil {
			return b, err
		}
		b.cached = append(b.cached, took)
	}
	st, err := os.Stat(img)
	if err != nil {
		return b, err
	}
	b.image = st.Sys().(*syscall.Stat_t).Blocks * 512
	return b, nil
}
