package kernels

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"

	"github.com/pierrec/lz4/v4"
)

// maxVmlinux bounds an extracted kernel, in bytes.
const maxVmlinux = 256 << 20

// Vmlinux extracts the ELF kernel from a bzImage (Documentation/arch/x86/boot.rst: setup_sects at 0x1f1, "HdrS" at 0x202,
// payload_offset and payload_length at 0x248 and 0x24c, relative to the protected-mode code). The payload is the
// compressed kernel followed by its length in four bytes.
func Vmlinux(b []byte) ([]byte, error) {
	if len(b) < 0x250 || string(b[0x202:0x206]) != "HdrS" {
		return nil, errors.New("not a bzImage")
	}
	setup := int64(b[0x1f1])
	if setup == 0 {
		setup = 4
	}
	off := (setup+1)*512 + int64(binary.LittleEndian.Uint32(b[0x248:]))
	end := off + int64(binary.LittleEndian.Uint32(b[0x24c:]))
	if off+8 > end || end > int64(len(b)) {
		return nil, fmt.Errorf("payload at %#x to %#x in a file of %#x bytes", off, end, len(b))
	}
	p, size := b[off:end-4], binary.LittleEndian.Uint32(b[end-4:end])
	if size > maxVmlinux {
		return nil, fmt.Errorf("the kernel says it has %d bytes", size)
	}
	var r io.Reader
	switch {
	case bytes.HasPrefix(p, []byte{0x02, 0x21, 0x4c, 0x18}):
		r = lz4.NewReader(bytes.NewReader(p))
	case bytes.HasPrefix(p, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(bytes.NewReader(p))
		if err != nil {
			return nil, err
		}
		r = z
	case bytes.HasPrefix(p, []byte{0xfd, '7', 'z', 'X', 'Z'}):
		return check(external(p, size, "xz"))
	case bytes.HasPrefix(p, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return check(external(p, size, "zstd"))
	default:
		return nil, fmt.Errorf("compression % x is none of LZ4, gzip, xz and zstd", p[:4])
	}
	v := make([]byte, size)
	if _, err := io.ReadFull(r, v); err != nil {
		return nil, fmt.Errorf("decompressing: %w", err)
	}
	return check(v, nil)
}

// external decompresses with a program of the machine: only the larger kernel needs one, and boots without it too.
func external(p []byte, size uint32, prog string) ([]byte, error) {
	c := exec.Command(prog, "-d", "-c", "-q")
	c.Stdin = bytes.NewReader(p)
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("decompressing with %s: %w", prog, err)
	}
	if len(out) != int(size) {
		return nil, fmt.Errorf("%s gave %d bytes, the image says %d", prog, len(out), size)
	}
	return out, nil
}

// check passes an ELF file on.
func check(v []byte, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	if _, err := elf.NewFile(bytes.NewReader(v)); err != nil {
		return nil, err
	}
	return v, nil
}
