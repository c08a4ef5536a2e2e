package image

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Program adds a host program at the guest path, with every library its dynamic loader would map.
func (t *Tree) Program(host, guest string) error {
	if err := t.File(host, guest); err != nil {
		return err
	}
	libs, err := Libraries(host)
	if err != nil {
		return err
	}
	for _, l := range libs {
		if g := MergedUsr(l); !t.Has(g) {
			if err := t.File(l, g); err != nil {
				return err
			}
		}
	}
	// The loader finds libraries outside its built-in folders through its cache.
	if cache := "/etc/ld.so.cache"; len(libs) > 0 && !t.Has(cache) {
		if err := t.File(cache, cache); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// MergedUsr gives the path that p has where /bin, /sbin, /lib, /lib32 and /lib64 are links into /usr, as in the guest.
func MergedUsr(p string) string {
	p = filepath.Clean(p)
	for _, d := range UsrLinks {
		if strings.HasPrefix(p, "/"+d+"/") {
			return "/usr" + p
		}
	}
	return p
}

// UsrLinks are the folders of / that are links to the same name in /usr.
var UsrLinks = []string{"bin", "sbin", "lib", "lib32", "lib64"}

// Libraries lists the files that the dynamic loader maps for a program, the loader included; none for a static one.
// It asks ldd, because search paths, caches and run paths are the loader's own affair.
func Libraries(program string) ([]string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return nil, fmt.Errorf("%s is not an ELF program: %w", program, err)
	}
	dynamic := slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
	f.Close()
	if !dynamic {
		return nil, nil
	}
	out, err := exec.Command("ldd", program).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w: %s", program, err, strings.TrimSpace(string(out)))
	}
	libs, err := ParseLdd(string(out))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", program, err)
	}
	return libs, nil
}

// ParseLdd reads ldd's output: lines "name => path (address)", "path (address)", "name (address)" for what the kernel
// provides, "name => not found", and "statically linked".
func ParseLdd(out string) ([]string, error) {
	var libs []string
	sc := bufio.NewScanner(strings.NewReader(out))
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if i := strings.LastIndex(line, " (0x"); i >= 0 {
			line = line[:i]
		}
		name, p, arrow := strings.Cut(line, " => ")
		if !arrow {
			p = name
		}
		switch {
		case p == "not found":
			return nil, fmt.Errorf("library %s is not found on this machine", name)
		case strings.HasPrefix(p, "/") && !slices.Contains(libs, p):
			libs = append(libs, p)
		}
	}
	return libs, sc.Err()
}

// qemuData are the files of QEMU that its PC and microvm machines read at start: firmware, option ROMs and the network
// card's ROM, without which -device virtio-net-pci is refused.
var qemuData = []string{
	"bios-256k.bin", "bios-microvm.bin", "qboot.rom", "pvh.bin", "kvmvapic.bin", "linuxboot.bin", "linuxboot_dma.bin",
	"multiboot.bin", "multiboot_dma.bin", "vgabios-stdvga.bin", "efi-virtio.rom",
}

// QEMUData adds the firmware of a qemu-system program from the folders it says it searches; present says how many files
// were found, which is 0 where the program's packages are incomplete.
func (t *Tree) QEMUData(program string) (present int, err error) {
	out, err := exec.Command(program, "-L", "help").Output()
	if err != nil {
		return 0, fmt.Errorf("%s -L help: %w", program, err)
	}
	for _, n := range qemuData {
		for _, dir := range strings.Fields(string(out)) {
			p := filepath.Join(dir, n)
			if _, err := os.Stat(p); err != nil {
				continue
			}
			if err := t.File(p, p); err != nil {
				return present, err
			}
			present++
			break
		}
	}
	return present, nil
}
