package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const resolvConf = "/etc/resolv.conf"

type digOptions struct {
	name, server       string
	kind               uint16
	short, tcp, search bool
}

// dig asks a name server and prints the answers.
func dig(args []string, s streams) error {
	o, err := parseDig(args)
	if err != nil {
		return err
	}
	config, err := dns.ClientConfigFromFile(resolvConf)
	if err != nil {
		return fmt.Errorf("read the resolver's configuration: %w", err)
	}
	if o.server == "" {
		if len(config.Servers) == 0 {
			return errors.New("no name server is known")
		}
		o.server = net.JoinHostPort(config.Servers[0], config.Port)
	}
	client := &dns.Client{Net: "udp", Timeout: 5 * time.Second}
	if o.tcp {
		client.Net = "tcp"
	}
	for _, name := range o.names(config) {
		answers, err := ask(client, o, name)
		if err != nil {
			return &exitError{9, err}
		}
		for _, answer := range answers {
			_, _ = fmt.Fprintln(s.out, o.line(answer))
		}
		if len(answers) > 0 {
			return nil
		}
	}
	return nil
}

// ask puts one question, again over TCP when the answer does not fit.
func ask(client *dns.Client, o digOptions, name string) ([]dns.RR, error) {
	question := new(dns.Msg).SetQuestion(name, o.kind)
	answer, _, err := client.Exchange(question, o.server)
	if err == nil && answer.Truncated && client.Net == "udp" {
		answer, _, err = (&dns.Client{Net: "tcp", Timeout: client.Timeout}).Exchange(question, o.server)
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s for %s: %w", o.server, name, err)
	}
	return answer.Answer, nil
}

// names are what to ask for: the name itself, or as the search list completes it.
func (o digOptions) names(config *dns.ClientConfig) []string {
	if !o.search {
		return []string{dns.Fqdn(o.name)}
	}
	return config.NameList(o.name)
}

func (o digOptions) line(answer dns.RR) string {
	if o.short {
		return strings.TrimPrefix(answer.String(), answer.Header().String())
	}
	return answer.String()
}

func parseDig(args []string) (digOptions, error) {
	o := digOptions{kind: dns.TypeA}
	for _, arg := range args {
		switch arg {
		case "+short":
			o.short = true
		case "+tcp":
			o.tcp = true
		case "+search":
			o.search = true
		case "+notcp", "+noall", "+answer", "+nosearch": // so anyway
		default:
			server, isServer := strings.CutPrefix(arg, "@")
			kind, isKind := dns.StringToType[strings.ToUpper(arg)]
			switch {
			case isServer:
				o.server = net.JoinHostPort(server, "53")
			case isKind && o.name != "":
				o.kind = kind
			case strings.HasPrefix(arg, "+") || strings.HasPrefix(arg, "-") || o.name != "":
				return o, fmt.Errorf("unknown argument %q", arg)
			default:
				o.name = arg
			}
		}
	}
	if o.name == "" {
		return o, errors.New("no name")
	}
	return o, nil
}

// getent looks hosts up as programs do: /etc/hosts, then the name servers with the search list.
func getent(args []string, s streams) error {
	if len(args) != 2 || args[0] != "hosts" && args[0] != "ahosts" {
		return errors.New(`only "hosts NAME" is known`)
	}
	resolver := &net.Resolver{PreferGo: true}
	if net.ParseIP(args[1]) != nil {
		names, err := resolver.LookupAddr(context.Background(), args[1])
		if err != nil {
			return &exitError{2, err}
		}
		_, _ = fmt.Fprintf(s.out, "%-15s %s\n", args[1], strings.TrimSuffix(strings.Join(names, " "), "."))
		return nil
	}
	addresses, err := resolver.LookupHost(context.Background(), args[1])
	if err != nil {
		return &exitError{2, err}
	}
	for _, address := range addresses {
		_, _ = fmt.Fprintf(s.out, "%-15s %s\n", address, args[1])
	}
	return nil
}
