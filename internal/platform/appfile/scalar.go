package appfile

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // names of time zones are checked on machines without a database of them, too

	"github.com/robfig/cron/v3"
	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/resource"

	"gantry.dev/gantry/internal/platform/build/language"
)

// Tags of YAML's scalars.
const (
	tagString = "!!str"
	tagInt    = "!!int"
	tagFloat  = "!!float"
	tagBool   = "!!bool"
)

// Limits on names. Objects are named APP-PROCESS, and a name is one label of a host name.
const (
	MaxAppName     = 40
	MaxProcessName = language.MaxProcessName
)

// patterns as the schema has them; Go and JavaScript read them alike.
const (
	patternLabel    = `^[a-z]([-a-z0-9]*[a-z0-9])?$`
	patternEnv      = `^[A-Za-z_][A-Za-z0-9_]*$`
	patternDomain   = `^(\*\.)?([a-z0-9]([-a-z0-9]*[a-z0-9])?\.)+[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	patternDuration = `^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h|d))+$`
	patternPercent  = `^[0-9]+(\.[0-9]+)?%$`
	patternQuantity = `^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$`
	patternAbsolute = `^/.+`
)

// scalar is a kind of plain value. read gets the text as it is written.
type scalar struct {
	what   string   // "a duration such as 30s", as messages and the reference name it
	tags   []string // that may stand there
	read   func(text string) (any, error)
	schema map[string]any
}

func text() *shape {
	return plain("text", nil, func(s string) (any, error) {
		if strings.TrimSpace(s) == "" {
			return nil, errors.New("is empty")
		}
		return s, nil
	}, map[string]any{"type": "string", "minLength": 1})
}

// anyText takes numbers and truth values as they are written: an environment has only text.
func anyText() *shape {
	return plain("text", []string{tagString, tagInt, tagFloat, tagBool}, func(s string) (any, error) {
		if strings.ContainsRune(s, 0) {
			return nil, errors.New("has a zero byte, which no environment can hold")
		}
		return s, nil
	}, map[string]any{"type": []any{"string", "number", "boolean"}})
}

func version() *shape {
	return plain("a version such as 17", []string{tagString, tagInt, tagFloat}, func(s string) (any, error) {
		if !regexp.MustCompile(`^[0-9]+(\.[0-9]+)*$`).MatchString(s) {
			return nil, errors.New("is not a version such as 17")
		}
		return s, nil
	}, map[string]any{"type": []any{"string", "number"}})
}

func integer(least, most int64) *shape {
	what := fmt.Sprintf("a whole number from %d to %d", least, most)
	return plain(what, []string{tagInt}, func(s string) (any, error) {
		n, err := strconv.ParseInt(s, 0, 64)
		if err != nil || n < least || n > most {
			return nil, fmt.Errorf("is not %s", what)
		}
		return n, nil
	}, map[string]any{"type": "integer", "minimum": least, "maximum": most})
}

func duration() *shape {
	const what = "a duration such as 30s"
	return plain(what, []string{tagString, tagInt}, func(s string) (any, error) {
		d, err := ParseDuration(s)
		if err != nil {
			return nil, err
		}
		return d.String(), nil
	}, map[string]any{"anyOf": []any{map[string]any{"type": "string", "pattern": patternDuration}, map[string]any{"const": 0}}})
}

// ParseDuration reads a duration such as 90s, 1h30m or 7d.
func ParseDuration(s string) (time.Duration, error) {
	if s == "0" {
		return 0, nil
	}
	if _, err := strconv.ParseFloat(s, 64); err == nil {
		return 0, fmt.Errorf("has no unit: write %ss, %sm or %sh", s, s, s)
	}
	var days time.Duration
	rest := s
	if before, after, found := strings.Cut(s, "d"); found {
		n, err := strconv.ParseFloat(before, 64)
		if err != nil || n > 36500 {
			return 0, errors.New("is not a duration such as 30s, 5m or 7d")
		}
		days, rest = time.Duration(n*24*float64(time.Hour)), after
	}
	var d time.Duration
	if rest != "" {
		var err error
		if d, err = time.ParseDuration(rest); err != nil {
			return 0, errors.New("is not a duration such as 30s, 5m or 7d")
		}
	}
	if d += days; d < 0 {
		return 0, errors.New("is less than nothing")
	}
	return d, nil
}

func quantity(what string) *shape {
	return plain(what, []string{tagString, tagInt, tagFloat}, func(s string) (any, error) {
		q, err := resource.ParseQuantity(s)
		if err != nil {
			if _, after, ok := cutUnit(s); ok {
				return nil, fmt.Errorf("is not %s: the unit %q is unknown, there are Ki, Mi, Gi (1024) and k, M, G (1000)", what, after)
			}
			return nil, fmt.Errorf("is not %s", what)
		}
		if q.Sign() <= 0 {
			return nil, errors.New("must be more than nothing")
		}
		return q.String(), nil
	}, map[string]any{"anyOf": []any{
		map[string]any{"type": "string", "pattern": patternQuantity}, map[string]any{"type": "number", "exclusiveMinimum": 0},
	}})
}

func cutUnit(s string) (number, unit string, found bool) {
	i := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if i <= 0 {
		return s, "", false
	}
	return s[:i], strings.TrimSpace(s[i:]), true
}

func percent() *shape {
	return plain("a percentage such as 1%", []string{tagString, tagInt, tagFloat}, func(s string) (any, error) {
		number, found := strings.CutSuffix(s, "%")
		n, err := strconv.ParseFloat(number, 64)
		if err != nil || n < 0 || n > 100 {
			return nil, errors.New("is not a percentage such as 1%")
		}
		if !found {
			return nil, fmt.Errorf("has no percent sign: write %s%%", s)
		}
		return s, nil
	}, map[string]any{"type": "string", "pattern": patternPercent})
}

func oneOf(words ...string) *shape {
	what := "one of " + strings.Join(words, ", ")
	return plain(what, nil, func(s string) (any, error) {
		if slices.Contains(words, s) {
			return s, nil
		}
		return nil, fmt.Errorf("is unknown%s", meant(s, words, "there is "+strings.Join(words, ", ")))
	}, map[string]any{"type": "string", "enum": toAny(words)})
}

// label is a name that becomes a part of a host name or of an object's name.
func label(what string, most int) *shape {
	pattern := regexp.MustCompile(patternLabel)
	return plain(what, nil, func(s string) (any, error) {
		if !pattern.MatchString(s) {
			return nil, errors.New("is not a name of lower-case letters, digits and dashes that begins with a letter")
		}
		if len(s) > most {
			return nil, fmt.Errorf("has %d letters, more than %d", len(s), most)
		}
		return s, nil
	}, map[string]any{"type": "string", "pattern": patternLabel, "maxLength": most})
}

func variable() *shape {
	pattern := regexp.MustCompile(patternEnv)
	return plain("a name such as LOG_LEVEL", nil, func(s string) (any, error) {
		if !pattern.MatchString(s) {
			return nil, errors.New("is not the name of a variable: letters, digits and _, such as LOG_LEVEL")
		}
		return s, nil
	}, map[string]any{"type": "string", "pattern": patternEnv})
}

func domain() *shape {
	pattern := regexp.MustCompile(patternDomain)
	return plain("a host name such as shop.example.com", nil, func(s string) (any, error) {
		switch {
		case strings.Contains(s, "://"):
			return nil, errors.New("is an address: write the host name alone, without https://")
		case strings.ToLower(s) != s:
			return nil, fmt.Errorf("has capital letters: write %s", strings.ToLower(s))
		case strings.ContainsAny(s, "/:"):
			return nil, errors.New("is not a host name: it has a path or a port")
		case !pattern.MatchString(s), len(s) > 253, slices.ContainsFunc(strings.Split(s, "."), func(l string) bool { return len(l) > 63 }):
			return nil, errors.New("is not a host name such as shop.example.com")
		}
		return s, nil
	}, map[string]any{"type": "string", "pattern": patternDomain, "maxLength": 253})
}

func cronExpression(words ...string) *shape {
	what := "a schedule such as \"0 3 * * *\""
	if len(words) > 0 {
		what = strings.Join(words, ", ") + " or " + what
	}
	return plain(what, nil, func(s string) (any, error) {
		if slices.Contains(words, s) {
			return s, nil
		}
		if strings.Contains(s, "TZ=") {
			return nil, errors.New("names a time zone: say it in the key timezone")
		}
		if _, err := cron.ParseStandard(s); err != nil {
			return nil, fmt.Errorf("is not %s (minute hour day month weekday): %w", what, err)
		}
		return s, nil
	}, map[string]any{"type": "string", "minLength": 1})
}

func timezone() *shape {
	return plain("a time zone such as Europe/Berlin", nil, func(s string) (any, error) {
		if _, err := time.LoadLocation(s); err != nil || s == "Local" || s == "" {
			return nil, errors.New("is not a time zone such as Europe/Berlin or UTC")
		}
		return s, nil
	}, map[string]any{"type": "string", "minLength": 1})
}

func absolute() *shape {
	return plain("an absolute path such as /data", nil, func(s string) (any, error) {
		if !path.IsAbs(s) || path.Clean(s) == "/" || strings.Contains(s, ":") {
			return nil, errors.New("is not an absolute path such as /data")
		}
		return path.Clean(s), nil
	}, map[string]any{"type": "string", "pattern": patternAbsolute})
}

// urlPath is a path of an HTTP request.
func urlPath() *shape {
	return plain("a path such as /healthz", nil, func(s string) (any, error) {
		if !strings.HasPrefix(s, "/") || strings.ContainsAny(s, " \t\n") {
			return nil, errors.New("is not a path such as /healthz")
		}
		return s, nil
	}, map[string]any{"type": "string", "pattern": "^/"})
}

// inside is a path in the folder of the file.
func inside() *shape {
	return plain("a path in this folder", nil, func(s string) (any, error) {
		clean := path.Clean(s)
		if path.IsAbs(s) || clean == ".." || strings.HasPrefix(clean, "../") {
			return nil, errors.New("leads out of the folder of this file")
		}
		return clean, nil
	}, map[string]any{"type": "string", "minLength": 1})
}

func imageReference() *shape {
	return plain("an image such as ghcr.io/acme/shop:1.4", nil, func(s string) (any, error) {
		if err := CheckImage(s); err != nil {
			return nil, err
		}
		return s, nil
	}, map[string]any{"type": "string", "minLength": 1})
}

// CheckImage says whether a reference to an image can be one.
func CheckImage(ref string) error {
	pattern := regexp.MustCompile(`^[a-zA-Z0-9][-a-zA-Z0-9._:]*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:[A-Za-z0-9_][-A-Za-z0-9._]{0,127})?(@sha256:[0-9a-f]{64})?$`)
	if !pattern.MatchString(ref) || strings.HasSuffix(ref, ":") {
		return errors.New("is not an image such as ghcr.io/acme/shop:1.4")
	}
	return nil
}

func signal() *shape {
	words := []string{"TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "WINCH", "KILL"}
	s := oneOf(words...)
	read := s.scalar.read
	s.scalar.read = func(text string) (any, error) {
		if name, found := strings.CutPrefix(text, "SIG"); found && slices.Contains(words, name) {
			return nil, fmt.Errorf("is written without SIG: write %s", name)
		}
		return read(text)
	}
	return s
}

func plain(what string, tags []string, read func(string) (any, error), schema map[string]any) *shape {
	if tags == nil {
		tags = []string{tagString}
	}
	return &shape{scalar: &scalar{what: what, tags: tags, read: read, schema: schema}}
}

// describe names what stands in the file, for messages.
func describe(node *yaml.Node) string {
	switch node.Kind {
	case yaml.MappingNode:
		return "a map"
	case yaml.SequenceNode:
		return "a list"
	}
	switch node.ShortTag() {
	case tagInt, tagFloat:
		return "the number " + node.Value
	case tagBool:
		return "the truth value " + node.Value
	case "!!null":
		return "nothing"
	}
	return "text"
}

func toAny(words []string) []any {
	out := make([]any, len(words))
	for i, w := range words {
		out[i] = w
	}
	return out
}

// CheckDomain says whether a host name can be one of an application.
func CheckDomain(name string) error {
	_, err := domain().scalar.read(name)
	return err
}
