package language

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

var mainBlock = regexp.MustCompile(`(?m)^(app|application)\s*=`)

// python plans requirements.txt or pyproject.toml: a virtual environment made in a first stage, and the web process of
// the Procfile, or what the files suggest.
func (d detector) python() (Plan, error) {
	start := d.pythonStart()
	if start == "" {
		return Plan{}, errors.New("cannot tell how to start this Python application: add a Procfile with a line such as \"web: gunicorn app:app\"")
	}
	base := d.base(Python, pythonImage)
	cache := []string{"type=cache,target=/root/.cache/pip,sharing=locked"}
	var b strings.Builder
	fmt.Fprintf(&b, "FROM %s AS build\nWORKDIR /app\nENV PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1\n%s", base, d.args())
	b.WriteString("RUN python3 -m venv --without-pip /venv\n")
	// pip's own compiled files hold times; python3's, below, do not.
	const pip = "python3 -m pip --python /venv/bin/python3 install --no-compile "
	switch {
	case !d.has("requirements.txt"):
		b.WriteString("COPY . .\n" + d.run(cache, pip+"."))
	case d.alone("requirements.txt"):
		b.WriteString("COPY requirements.txt ./\n" + d.run(cache, pip+"--requirement requirements.txt") + "COPY . .\n")
	default: // it names other files of the source
		b.WriteString("COPY . .\n" + d.run(cache, pip+"--requirement requirements.txt"))
	}
	b.WriteString("RUN python3 -m compileall -q --invalidation-mode unchecked-hash /venv/lib\n")
	fmt.Fprintf(&b, "FROM %s\nWORKDIR /app\nENV PATH=/venv/bin:$PATH VIRTUAL_ENV=/venv PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp\n", base)
	fmt.Fprintf(&b, "COPY --from=build /venv /venv\nCOPY --from=build /app /app\nUSER 65532:65532\n")
	return Plan{Dockerfile: b.String() + command(start), Start: start, Why: ": Python"}, nil
}

// alone says whether a list of requirements names packages by their names only, and no files.
func (d detector) alone(name string) bool {
	text, err := d.read(name)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "-") || strings.HasPrefix(line, ".") || strings.Contains(line, "/") || strings.HasSuffix(line, ".whl") {
			return false
		}
	}
	return true
}

// pythonStart is the command of the web process; "" if nothing suggests one.
func (d detector) pythonStart() string {
	if d.web != "" {
		return d.web
	}
	needs := ""
	for _, name := range []string{"requirements.txt", "pyproject.toml"} {
		if d.has(name) {
			if data, err := d.read(name); err == nil {
				needs += strings.ToLower(string(data))
			}
		}
	}
	for _, module := range []string{"app", "main", "wsgi", "asgi"} {
		if !d.has(module + ".py") {
			continue
		}
		code, err := d.read(module + ".py")
		if err != nil {
			continue
		}
		name := mainBlock.FindSubmatch(code)
		switch {
		case name != nil && strings.Contains(needs, "uvicorn"):
			return fmt.Sprintf("uvicorn %s:%s --host 0.0.0.0 --port ${PORT:-8080}", module, name[1])
		case name != nil && strings.Contains(needs, "gunicorn"):
			return fmt.Sprintf("gunicorn --bind 0.0.0.0:${PORT:-8080} %s:%s", module, name[1])
		default:
			return "python3 " + module + ".py"
		}
	}
	if d.has("manage.py") {
		return "python3 manage.py runserver 0.0.0.0:${PORT:-8080}"
	}
	return ""
}
