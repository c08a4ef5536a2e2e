// Package netbsd gathers what a test needs to boot NetBSD: a kernel from the
// user's cache, programs built from this tree, and a KVM that can run a full
// kernel, here or in the lab.
package netbsd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrMissing is behind every error that says what is not there: a test skips.
var ErrMissing = errors.New("missing")

// kernelName is what NetBSD calls its kernel for machines without firmware.
const kernelName = "netbsd-MICROVM"

// Kernel finds the newest release's kernel in smolvmm/kernels of the user's
// cache folder, where `smolvmm kernel fetch` puts them.
func Kernel() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("%w: no NetBSD kernel: %v", ErrMissing, err)
	}
	found, err := filepath.Glob(filepath.Join(cache, "smolvmm", "kernels", "*", kernelName))
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		return "", fmt.Errorf("%w: no NetBSD kernel in the cache: run `smolvmm kernel fetch`", ErrMissing)
	}
	return slices.MaxFunc(found, func(a, b string) int {
		return slices.Compare(release(a), release(b))
	}), nil
}

// release reads the numbers of the folder that a kernel is in: 10.99.12.
func release(kernel string) (v []int) {
	for f := range strings.FieldsFuncSeq(filepath.Base(filepath.Dir(kernel)), func(r rune) bool { return r < '0' || r > '9' }) {
		n, err := strconv.Atoi(f)
		if err != nil {
			n = 0
		}
		v = append(v, n)
	}
	return v
}

// KVM says why no full kernel can run on this machine's own KVM: there is none
// that may be used, or it is a software one, which cannot emulate all that a
// kernel's ring 0 does.
func KVM() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrMissing, err)
	}
	f.Close()
	if _, err := os.Stat("/sys/module/kvm_pvm"); err == nil {
		return fmt.Errorf("%w: /dev/kvm is a software KVM (kvm_pvm), which runs no full kernel", ErrMissing)
	}
	return nil
}

// InLab says whether this process runs in the lab.
func InLab() bool { return os.Getenv("SMOLVMM_LAB") != "" }

// Program builds a package of this module, without cgo, as file.
func Program(ctx context.Context, file, pkg string) error {
	if _, err := exec.LookPath("go"); err != nil {
		return fmt.Errorf("%w: the go command is not here to build %s", ErrMissing, pkg)
	}
	c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", file, "github.com/smolvmm/smolvmm/"+pkg)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// Lab builds the lab's runner in dir and asks it whether all it needs is there.
func Lab(ctx context.Context, dir string) (runner string, err error) {
	runner = filepath.Join(dir, "lab")
	if err := Program(ctx, runner, "bench/lab"); err != nil {
		return "", err
	}
	if out, err := exec.CommandContext(ctx, runner, "doctor").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: no lab (run `go run ./bench/lab setup`): %s", ErrMissing, strings.TrimSpace(string(out)))
	}
	return runner, nil
}
