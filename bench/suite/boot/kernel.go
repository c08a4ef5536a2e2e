package boot

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/smolvmm/smolvmm/bench/internal/machine"
	"github.com/smolvmm/smolvmm/bench/testimg"
)

// FindKernel settles which full kernel is booted, of a file, auto (the newest NetBSD in the cache, where a KVM can run
// it) and none, and says so where none is. A root image that is not given is made in dir.
func (o *Options) FindKernel(ctx context.Context, dir string, lab bool, notes io.Writer) error {
	soft := !lab && machine.KVMKind() == machine.SoftKVM
	switch {
	case o.Kernel == "none":
		o.Kernel = ""
		return nil
	case o.Kernel != "auto":
	case soft:
		o.Kernel = ""
		fmt.Fprintf(notes, "boot: no full kernel is booted: %s cannot run one; -lab can\n", machine.SoftKVM)
		return nil
	default:
		cache, err := os.UserCacheDir()
		if err != nil {
			return err
		}
		found, err := filepath.Glob(filepath.Join(cache, "smolvmm", "kernels", "*", "netbsd-MICROVM"))
		if err != nil {
			return err
		}
		o.Kernel = ""
		if len(found) == 0 {
			fmt.Fprintln(notes, "boot: no full kernel is booted: none is in the cache (smolvmm kernel fetch)")
			return nil
		}
		o.Kernel = slices.Max(found)
	}
	if o.Disk == "" {
		spec, err := testimg.Default(ctx)
		if err != nil {
			return err
		}
		o.Disk = filepath.Join(dir, "root.img")
		if err := testimg.Build(ctx, o.Disk, spec); err != nil {
			return fmt.Errorf("root image: %w", err)
		}
	}
	for _, f := range []string{o.Kernel, o.Disk} {
		if _, err := os.Stat(f); err != nil {
			return err
		}
	}
	return nil
}
