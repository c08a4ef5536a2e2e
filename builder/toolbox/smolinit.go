package toolbox

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// The bytes are cmd/smolinit, built for netbsd/amd64 and compressed; smolinit.json
// says of what and by what.
//
//go:generate go test -count=1 -run ^TestSmolinitIsItsSource$ . -update

//go:embed smolinit.zst
var smolinitBytes string

//go:embed smolinit.json
var smolinitRecord string

// record is smolinit.json.
type record struct {
	Level  int    `json:"level"`  // cmd/smolinit's
	Go     string `json:"go"`     // the toolchain's version
	Source string `json:"source"` // a digest of the sources, "sha256:…"
	Digest string `json:"digest"` // of the program
	Size   int    `json:"size"`   // of the program in bytes
}

// maxProgram bounds smolinit in bytes.
const maxProgram = 16 << 20

// embedded unpacks smolinit.
func embedded() ([]byte, error) {
	var r record
	if err := json.Unmarshal([]byte(smolinitRecord), &r); err != nil {
		return nil, fmt.Errorf("the built-in smolinit: %w", err)
	}
	d, err := zstd.NewReader(strings.NewReader(smolinitBytes), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxProgram))
	if err != nil {
		return nil, fmt.Errorf("the built-in smolinit: %w", err)
	}
	defer d.Close()
	b := bytes.NewBuffer(make([]byte, 0, max(0, min(r.Size, maxProgram))))
	if _, err := b.ReadFrom(d); err != nil {
		return nil, fmt.Errorf("the built-in smolinit: %w", err)
	}
	if digest(b.Bytes()) != r.Digest {
		return nil, errors.New("the built-in smolinit is not what its record says: run go generate ./builder/toolbox and build again")
	}
	return b.Bytes(), nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// checkProgram says whether a guest of NetBSD/amd64 can run a program by itself.
func checkProgram(name string, b []byte) error {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("%s is no program: %w", name, err)
	}
	switch {
	case f.Machine != elf.EM_X86_64:
		return fmt.Errorf("%s is a program for %v: build it with GOARCH=amd64", name, f.Machine)
	case f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN:
		return fmt.Errorf("%s is no program, but an ELF file of type %v", name, f.Type)
	case f.OSABI != elf.ELFOSABI_NETBSD && !noted(f):
		return fmt.Errorf("%s is not a program for NetBSD: build it with GOOS=netbsd", name)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s wants a dynamic linker: build it with CGO_ENABLED=0", name)
		}
	}
	return nil
}

// noted says whether NetBSD's own note is there, by which its kernel knows a
// program (sys/exec_elf.h: ELF_NOTE_NETBSD_NAME).
func noted(f *elf.File) bool { return f.Section(".note.netbsd.ident") != nil }
