package demo

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write guest.elf and guest.toolchain anew from guest/")

const (
	imageFile     = "guest.elf"
	toolchainFile = "guest.toolchain"
	maxImage      = 104 << 10 // bytes; the guest stays small
)

// Plain integer instructions only (a KVM that emulates ring 0 knows no others),
// and nothing in the output that depends on where or when it was built.
var (
	compile = strings.Fields(`-c -m64 -march=x86-64 -mtune=generic -std=gnu11 -Os -ffreestanding -fno-builtin -nostdinc
		-mgeneral-regs-only -mno-red-zone -fno-pic -fno-pie -mcmodel=small -fno-stack-protector -fcf-protection=none
		-fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns -fno-strict-aliasing -fno-ident -fno-jump-tables -fno-delete-null-pointer-checks
		-ffunction-sections -Wall -Wextra -Werror`)
	link = strings.Fields(`-m elf_x86_64 -static -nostdlib --build-id=none --gc-sections --no-warn-rwx-segments
		-z max-page-size=16 -z noexecstack -s -T guest.ld`)
)

// toolchain names the compiler and the linker, one a line.
func toolchain() (string, error) {
	var b strings.Builder
	for _, tool := range []string{"gcc", "ld"} {
		out, err := exec.Command(tool, "--version").Output()
		if err != nil {
			return "", fmt.Errorf("%s --version: %w", tool, err)
		}
		first, _, _ := strings.Cut(string(out), "\n")
		b.WriteString(first + "\n")
	}
	return b.String(), nil
}

// build compiles guest/ into tmp and gives the linked kernel.
func build(tmp string) ([]byte, error) {
	const dir = "guest"
	var sources []string
	for _, pattern := range []string{"*.S", "*.c"} { // Glob sorts
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, err
		}
		sources = append(sources, found...)
	}
	run := func(name string, args ...string) error {
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", cmd, err, out)
		}
		return nil
	}
	image := filepath.Join(tmp, imageFile)
	args := append(append([]string{}, link...), "-o", image)
	for _, source := range sources {
		name := filepath.Base(source)
		object := filepath.Join(tmp, name+".o")
		if err := run("gcc", append(append([]string{}, compile...), "-o", object, name)...); err != nil {
			return nil, err
		}
		args = append(args, object)
	}
	if err := run("ld", args...); err != nil {
		return nil, err
	}
	return os.ReadFile(image)
}

// The embedded bytes are what guest/ builds to, where the same tools are at
// hand. With -update they are written instead.
func TestGuestIsItsSource(t *testing.T) {
	have, err := toolchain()
	if err != nil {
		if *update {
			t.Fatal(err)
		}
		t.Skipf("NOT COMPARED with its source: no compiler (%v)", err)
	}
	want, err := os.ReadFile(toolchainFile)
	if err != nil && !*update {
		t.Fatal(err)
	}
	if !*update && have != string(want) {
		t.Skipf("NOT COMPARED with its source: built by %q, here is %q", want, have)
	}
	image, err := build(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if len(image) > maxImage {
		t.Errorf("the guest has %d bytes, more than %d", len(image), maxImage)
	}
	if *update {
		if err := os.WriteFile(imageFile, image, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(toolchainFile, []byte(have), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(image, []byte(kernel)) {
		t.Errorf("guest.elf (%d bytes) is not what guest/ builds to (%d bytes): run go generate ./vmm/demo", len(kernel), len(image))
	}
}
