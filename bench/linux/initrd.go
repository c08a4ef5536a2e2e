// Package linux gathers what a test needs to boot Debian's stock kernel as a
// guest: the kernel that the lab has, with its modules, and an initramfs with a
// program of this tree as its init.
package linux

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// Kernel asks the lab's runner for its kernel's ELF image, and gives the folder of
// the kernel's modules as well.
func Kernel(ctx context.Context, lab string) (vmlinux, modules string, err error) {
	out, err := exec.CommandContext(ctx, lab, "vmlinux").Output()
	if err != nil {
		return "", "", fmt.Errorf("lab vmlinux: %w", err)
	}
	vmlinux = strings.TrimSpace(string(out))
	root := filepath.Dir(filepath.Dir(vmlinux))
	found, err := filepath.Glob(filepath.Join(root, "lib", "modules", "*", "modules.dep"))
	if err != nil || len(found) != 1 {
		return "", "", fmt.Errorf("%d folders of modules below %s: want one", len(found), root)
	}
	return vmlinux, filepath.Dir(found[0]), nil
}

// Initramfs writes an archive with programs (paths in the guest, without the first
// slash, to files here) in folders that it has: /bin, /etc and /tmp are there. The modules
// named and all they need are in /modules, and their order in /modules/order.
func Initramfs(w io.Writer, programs map[string]string, modules string, names ...string) error {
	records := []cpio.Record{
		cpio.Directory("bin", 0o755), cpio.Directory("etc", 0o755), cpio.Directory("tmp", 0o777),
		cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.Directory("proc", 0o755), cpio.Directory("sys", 0o755), cpio.Directory("modules", 0o755),
	}
	for _, p := range slices.Sorted(maps.Keys(programs)) {
		b, err := os.ReadFile(programs[p])
		if err != nil {
			return err
		}
		records = append(records, cpio.StaticFile(p, string(b), 0o755))
	}
	files, err := order(modules, names)
	if err != nil {
		return err
	}
	var list strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(modules, f))
		if err != nil {
			return err
		}
		records = append(records, cpio.StaticFile("modules/"+filepath.Base(f), string(b), 0o644))
		fmt.Fprintln(&list, filepath.Base(f))
	}
	records = append(records, cpio.StaticFile("modules/order", list.String(), 0o644))
	cw := cpio.Newc.Writer(w)
	if err := cpio.WriteRecords(cw, records); err != nil {
		return err
	}
	return cpio.WriteTrailer(cw)
}

// order reads modules.dep ("path: path…", the innermost last) and gives the files
// in an order in which they load.
func order(dir string, names []string) ([]string, error) {
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	byName := map[string][]string{}
	for line := range strings.Lines(string(dep)) {
		file, needs, _ := strings.Cut(line, ":")
		n := strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".ko"), "-", "_")
		byName[n] = append([]string{file}, strings.Fields(needs)...)
	}
	var out []string
	seen := map[string]bool{}
	for _, n := range names {
		files := byName[n]
		if files == nil {
			return nil, fmt.Errorf("the kernel has no module %s", n)
		}
		for i := len(files) - 1; i >= 0; i-- {
			if !seen[files[i]] {
				seen[files[i]] = true
				out = append(out, files[i])
			}
		}
	}
	return out, nil
}
