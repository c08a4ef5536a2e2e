package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
)

const completionHelp = `smolvmm completion prints a shell's completion script.

Usage: smolvmm completion bash|zsh|fish

The script goes to
  bash   ~/.local/share/bash-completion/completions/smolvmm
  zsh    "${fpath[1]}/_smolvmm"
  fish   ~/.config/fish/completions/smolvmm.fish

Commands, flags, names of machines and images and files are completed.
`

func completion(args []string, s cli.Streams) error {
	if len(args) != 1 {
		return cli.Usagef("completion: which shell? bash, zsh or fish")
	}
	switch args[0] {
	case "bash":
		fmt.Fprint(s.Out, bashCompletion(commands()))
	case "zsh":
		fmt.Fprint(s.Out, zshCompletion(commands()))
	case "fish":
		fmt.Fprint(s.Out, fishCompletion(commands()))
	default:
		return cli.Usagef("completion %q: must be bash, zsh or fish", args[0])
	}
	return nil
}

// flagList gives a set's flags; a nil maker has none.
func flagList(make func() *pflag.FlagSet) (out []*pflag.Flag) {
	if make == nil {
		return nil
	}
	make().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			out = append(out, f)
		}
	})
	return out
}

// bootSet are the flags without a command.
func bootSet() *pflag.FlagSet { return new(cli.BootFlags).Set() }

func takesValue(f *pflag.Flag) bool { return f.NoOptDefVal == "" }

// valuesOf are what a flag's value may be, where that is a word of a few.
func valuesOf(name string) []string {
	return map[string][]string{
		"format": {"table", "json"}, "confine": {"enforce", "log", "trap", "off"}, "console": {"stdio", "none", "pty", "file:", "unix:"},
		"cpu": {"host", "baseline"}, "ready": {"start", "mark", "agent", "console:", "port:"}, "log-format": {"text", "json"}, "net": {"user", "none"},
		"egress": {"deny-all", "allow", "deny"},
	}[name]
}

// spellings are a flag's, with two dashes and by its letter.
func spellings(f *pflag.Flag) []string {
	out := []string{"--" + f.Name}
	if f.Shorthand != "" {
		out = append(out, "-"+f.Shorthand)
	}
	return out
}

// described is a flag's description for people, without its value's mark.
func described(f *pflag.Flag) (value, text string) {
	value, text = pflag.UnquoteUsage(f)
	if !takesValue(f) {
		value = ""
	}
	return value, text
}

func bashCompletion(cs []cli.Command) string {
	var b strings.Builder
	b.WriteString(`# bash completion for smolvmm; made by smolvmm completion bash
_smolvmm() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev= cmd=${COMP_WORDS[1]} flags= takes= names= values=
	COMPREPLY=()
	((COMP_CWORD > 1)) && prev=${COMP_WORDS[COMP_CWORD-1]}
	if ((COMP_CWORD == 1)) && [[ $cur != -* ]]; then
		COMPREPLY=($(compgen -W "help`)
	for _, c := range cs {
		b.WriteString(" " + c.Name)
	}
	b.WriteString("\" -- \"$cur\"))\n\t\treturn\n\tfi\n\tcase $cmd in\n")
	one := func(pattern string, flags []*pflag.Flag, names cli.NameKind) {
		var all, takes []string
		for _, f := range flags {
			all = append(all, spellings(f)...)
			if takesValue(f) {
				takes = append(takes, spellings(f)...)
			}
		}
		fmt.Fprintf(&b, "\t%s) flags='%s' takes=' %s ' names=%s ;;\n", pattern, strings.Join(all, " "), strings.Join(takes, " "), names)
	}
	one("-*", flagList(bootSet), cli.NoNames)
	for _, c := range cs {
		one(c.Name, flagList(c.Flags), c.Names)
	}
	b.WriteString("\thelp) names=commands ;;\n\tesac\n\tcase $prev in\n")
	for _, f := range valued(cs) {
		fmt.Fprintf(&b, "\t--%s) values='%s' ;;\n", f, strings.Join(valuesOf(f), " "))
	}
	b.WriteString(`	esac
	if [[ -n $values && $takes == *" $prev "* ]]; then
		COMPREPLY=($(compgen -W "$values" -- "$cur"))
	elif [[ -n $prev && $takes == *" $prev "* ]]; then
		COMPREPLY=($(compgen -f -- "$cur"))
	elif [[ $cur == -* ]]; then
		COMPREPLY=($(compgen -W "$flags" -- "$cur"))
	else
		case $names in
		machines) COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" ps -a -q 2>/dev/null)" -- "$cur")) ;;
		images) COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" images -q 2>/dev/null)" -- "$cur") $(compgen -f -- "$cur")) ;;
		commands) COMPREPLY=($(compgen -W "boot commands`)
	for _, c := range cs {
		b.WriteString(" " + c.Name)
	}
	b.WriteString(`" -- "$cur")) ;;
		*) COMPREPLY=($(compgen -f -- "$cur")) ;;
		esac
	fi
}
complete -o filenames -F _smolvmm smolvmm
`)
	return b.String()
}

// valued are the names of flags whose values are words.
func valued(cs []cli.Command) (out []string) {
	sets := []func() *pflag.FlagSet{bootSet}
	for _, c := range cs {
		sets = append(sets, c.Flags)
	}
	for _, set := range sets {
		for _, f := range flagList(set) {
			if valuesOf(f.Name) != nil && !slices.Contains(out, f.Name) {
				out = append(out, f.Name)
			}
		}
	}
	return out
}

// quoted puts a text into single quotes, for all three shells.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func zshCompletion(cs []cli.Command) string {
	var b strings.Builder
	b.WriteString("#compdef smolvmm\n# zsh completion for smolvmm; made by smolvmm completion zsh\n" +
		"_smolvmm_machines() { compadd -- ${(f)\"$(smolvmm ps -a -q 2>/dev/null)\"} }\n" +
		"_smolvmm_images() { compadd -- ${(f)\"$(smolvmm images -q 2>/dev/null)\"}; _files }\n" +
		"_smolvmm() {\n\tlocal -a commands\n\tcommands=(\n\t\t'help:show help'\n")
	colons := strings.NewReplacer(":", `\:`)
	for _, c := range cs {
		fmt.Fprintf(&b, "\t\t%s\n", quoted(c.Name+":"+colons.Replace(c.Summary)))
	}
	b.WriteString("\t)\n\tif (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then\n\t\t_describe -t commands command commands\n\t\treturn\n\tfi\n" +
		"\tlocal command=$words[2]\n\tif [[ $command != -* ]]; then\n\t\twords=(\"${(@)words[2,-1]}\")\n\t\t(( CURRENT-- ))\n\tfi\n\tcase $command in\n")
	words := map[cli.NameKind]string{cli.NoNames: "", cli.MachineNames: "*:machine:_smolvmm_machines", cli.ImageNames: "*:image:_smolvmm_images", cli.FileNames: "*:file:_files"}
	square := strings.NewReplacer("[", `\[`, "]", `\]`, ":", `\:`)
	one := func(pattern string, flags []*pflag.Flag, names cli.NameKind) {
		fmt.Fprintf(&b, "\t%s)\n\t\t_arguments -s -S", pattern)
		for _, f := range flags {
			value, text := described(f)
			for _, s := range spellings(f) {
				spec := "*" + s + "[" + square.Replace(text) + "]"
				if takesValue(f) {
					action := "_files"
					if vs := valuesOf(f.Name); vs != nil {
						action = "(" + square.Replace(strings.Join(vs, " ")) + ")"
					}
					spec += ":" + square.Replace(value) + ":" + action
				}
				b.WriteString(" \\\n\t\t\t" + quoted(spec))
			}
		}
		if w := words[names]; w != "" {
			b.WriteString(" \\\n\t\t\t" + quoted(w))
		}
		b.WriteString("\n\t\t;;\n")
	}
	one("-*", flagList(bootSet), cli.NoNames)
	for _, c := range cs {
		one(c.Name, flagList(c.Flags), c.Names)
	}
	b.WriteString("\thelp) _describe -t commands command commands ;;\n\tesac\n}\ncompdef _smolvmm smolvmm\n")
	return b.String()
}

func fishCompletion(cs []cli.Command) string {
	var b strings.Builder
	b.WriteString("# fish completion for smolvmm; made by smolvmm completion fish\ncomplete -c smolvmm -n __fish_use_subcommand -f -a help -d 'show help'\n")
	quote := func(s string) string { return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(s) + "'" }
	one := func(when string, flags []*pflag.Flag) {
		for _, f := range flags {
			_, text := described(f)
			fmt.Fprintf(&b, "complete -c smolvmm -n %s -l %s", quote(when), f.Name)
			if f.Shorthand != "" {
				b.WriteString(" -s " + f.Shorthand)
			}
			if takesValue(f) {
				b.WriteString(" -r")
				if vs := valuesOf(f.Name); vs != nil {
					b.WriteString(" -f -a " + quote(strings.Join(vs, " ")))
				}
			}
			b.WriteString(" -d " + quote(text) + "\n")
		}
	}
	one("__fish_use_subcommand", flagList(bootSet))
	words := map[cli.NameKind]string{cli.MachineNames: "(smolvmm ps -a -q 2>/dev/null)", cli.ImageNames: "(smolvmm images -q 2>/dev/null)"}
	for _, c := range cs {
		fmt.Fprintf(&b, "complete -c smolvmm -n __fish_use_subcommand -f -a %s -d %s\n", c.Name, quote(c.Summary))
		when := "__fish_seen_subcommand_from " + c.Name
		one(when, flagList(c.Flags))
		if w := words[c.Names]; w != "" {
			fmt.Fprintf(&b, "complete -c smolvmm -n %s -f -a %s\n", quote(when), quote(w))
		}
	}
	return b.String()
}
