package acpi

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestIASL has ACPICA's compiler read every table, and translate the DSDT's ASL
// back: what comes out must be the bytes that went in.
func TestIASL(t *testing.T) {
	iasl, err := exec.LookPath("iasl")
	if err != nil {
		t.Skip("NOT RUN: no iasl (Debian's acpica-tools)")
	}
	b, err := Tables(testBase, machine(4, 17))
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	xsdt := at(t, b, le.Uint64(b[24:]), "XSDT", 1)
	fadt := at(t, b, le.Uint64(xsdt[36:]), "FACP", 6)
	dir := t.TempDir()
	run := func(args ...string) string {
		cmd := exec.Command(iasl, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	for name, table := range map[string][]byte{
		"xsdt": xsdt, "facp": fadt, "apic": at(t, b, le.Uint64(xsdt[44:]), "APIC", 6), "dsdt": at(t, b, le.Uint64(fadt[140:]), "DSDT", 2),
	} {
		if err := os.WriteFile(filepath.Join(dir, name+".aml"), table, 0o600); err != nil {
			t.Fatal(err)
		}
		out := run("-d", name+".aml")
		dsl, err := os.ReadFile(filepath.Join(dir, name+".dsl"))
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		for _, bad := range []string{"rror", "arning", "Invalid", "Unknown"} {
			if text := out + string(dsl); strings.Contains(text, bad) {
				t.Errorf("%s: the disassembler says %q\n%s", name, bad, text)
			}
		}
		if name != "dsdt" {
			continue
		}
		for _, want := range []string{`Device (V010)`, `"LNRO0005"`, `EisaId ("PNP0501")`, `EisaId ("PNP0B00")`, `"QEMU0002"`, `0x0510,             // Range Minimum`, `0xFEB10000,         // Address Base`,
			`Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive`, `Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive`} {
			if !strings.Contains(string(dsl), want) {
				t.Errorf("the ASL lacks %q\n%s", want, dsl)
			}
		}
		out = run("-p", "back", "-tc", name+".dsl")
		if !strings.Contains(out, "0 Errors, 0 Warnings, 0 Remarks") {
			t.Errorf("the compiler says\n%s", out)
		}
		back, err := os.ReadFile(filepath.Join(dir, "back.aml"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(back[headerSize:], table[headerSize:]) {
			t.Errorf("the compiler makes of the ASL\n% x\nwhich was\n% x", back[headerSize:], table[headerSize:])
		}
	}
}
