package render

import (
	"slices"
	"strings"
)

// Command is how a command line becomes the command of a container. What needs no shell is split into words, so that it
// also runs in an image without one and gets the signals itself; everything else is run by sh.
func Command(line string) []string {
	line = strings.TrimSpace(line)
	if line == "" {
		return nil
	}
	words, simple := split(line)
	if simple && len(words) > 0 && !needsShell(words[0]) {
		for i := range words {
			words[i] = literal(words[i])
		}
		return words
	}
	if len(words) > 0 && !needsShell(words[0]) && !strings.ContainsAny(line, "|&;()\n") {
		line = "exec " + line // so that signals reach the program
	}
	return []string{"/bin/sh", "-c", literal(line)}
}

// literal keeps Kubernetes from reading a dollar sign as the start of a variable.
func literal(value string) string {
	if strings.Contains(value, "$(") || strings.Contains(value, "$$") {
		return strings.ReplaceAll(value, "$", "$$")
	}
	return value
}

// needsShell says whether a first word means something to a shell only.
func needsShell(word string) bool {
	name, _, assigned := strings.Cut(word, "=")
	if assigned && !strings.Contains(name, "/") {
		return true
	}
	return slices.Contains([]string{
		".", ":", "!", "[", "cd", "case", "eval", "exec", "export", "for", "if", "set", "source", "trap", "ulimit", "umask", "unset", "until", "while",
	}, word)
}

// split splits a line into words as a shell does, and says whether that is all a shell would do.
func split(line string) (words []string, simple bool) {
	var word strings.Builder
	inWord, simple := false, true
	var quote rune
	runes := []rune(line)
	for i := 0; i < len(runes); i++ {
		r := runes[i]
		switch {
		case quote == '\'' && r != '\'', quote == '"' && r != '"' && r != '\\' && r != '$' && r != '`':
			word.WriteRune(r)
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '\'' || r == '"'):
			quote, inWord = r, true
		case r == '\\' && i+1 < len(runes):
			i++
			if quote == '"' && !strings.ContainsRune("$`\"\\\n", runes[i]) {
				word.WriteRune('\\')
			}
			word.WriteRune(runes[i])
			inWord = true
		case quote == 0 && (r == ' ' || r == '\t'):
			if inWord {
				words = append(words, word.String())
			}
			word.Reset()
			inWord = false
		default:
			if strings.ContainsRune("|&;<>()$`*?[]#~{}\\\n", r) {
				simple = false
			}
			word.WriteRune(r)
			inWord = true
		}
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, simple && quote == 0
}
