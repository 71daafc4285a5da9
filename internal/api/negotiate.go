package api

import (
	"mime"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
)

// format is how bytes are written.
type format uint8

const (
	formatJSON format = iota
	formatYAML
	formatProto
)

// Media types of the API.
const (
	typeJSON  = "application/json"
	typeYAML  = "application/yaml"
	typeProto = "application/vnd.kubernetes.protobuf"
)

// shape is what an answer is turned into.
type shape uint8

const (
	shapeObject  shape = iota
	shapeTable         // meta.k8s.io Table
	shapePartial       // PartialObjectMetadata or its list
)

// output is what a client wants to get.
type output struct {
	format  format
	shape   shape
	list    bool   // as=PartialObjectMetadataList
	version string // of meta.k8s.io for a shape: "v1" or "v1beta1"
	pretty  bool
	profile string // aggregated discovery: "v2" or "v2beta1"
}

func (o *output) mediaType() string {
	switch o.format {
	case formatYAML:
		return typeYAML
	case formatProto:
		return typeProto
	}
	return typeJSON
}

// endpointClass says which transformations an endpoint offers.
type endpointClass uint8

const (
	classPlain    endpointClass = iota // documents and statuses: none
	classObject                        // resources: Table, PartialObjectMetadata
	classDiscover                      // discovery: APIGroupDiscoveryList
	classCustom                        // custom resources: as classObject, but protobuf only of their metadata
)

// acceptCacheSize bounds how many different Accept headers are remembered.
const acceptCacheSize = 256

// negotiator reads Accept headers, each different one once.
type negotiator struct {
	mu    sync.RWMutex // guards known
	known map[acceptKey]acceptAnswer
}

type acceptKey struct {
	header string
	class  endpointClass
}

type acceptAnswer struct {
	output output
	ok     bool
}

// negotiate chooses the best of what header accepts; ok is false if nothing will do.
func (n *negotiator) negotiate(header string, class endpointClass) (output, bool) {
	switch header {
	case "", typeJSON, "*/*":
		return output{}, true
	case typeProto:
		return output{format: formatProto}, class != classCustom
	}
	key := acceptKey{header, class}
	n.mu.RLock()
	answer, found := n.known[key]
	n.mu.RUnlock()
	if found {
		return answer.output, answer.ok
	}
	answer.output, answer.ok = chooseOutput(header, class)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.known == nil || len(n.known) >= acceptCacheSize {
		n.known = map[acceptKey]acceptAnswer{}
	}
	n.known[key] = answer
	return answer.output, answer.ok
}

// clause is one media range of an Accept header.
type clause struct {
	mediaType string
	params    map[string]string
	quality   float64
}

// parseAccept splits a header into its ranges, best first; equal ones keep their order.
func parseAccept(header string) []clause {
	var out []clause
	for part := range strings.SplitSeq(header, ",") {
		mediaType, rest, _ := strings.Cut(part, ";") // by hand: OpenAPI's types have an "@", which mime refuses
		c := clause{mediaType: strings.ToLower(strings.TrimSpace(mediaType)), params: map[string]string{}, quality: 1}
		if c.mediaType == "" {
			continue
		}
		for param := range strings.SplitSeq(rest, ";") {
			if name, value, found := strings.Cut(strings.TrimSpace(param), "="); found {
				c.params[strings.ToLower(name)] = strings.Trim(value, `"`)
			}
		}
		if q, err := strconv.ParseFloat(c.params["q"], 64); err == nil {
			c.quality = q
		}
		delete(c.params, "q")
		out = append(out, c)
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].quality > out[j].quality })
	return out
}

func chooseOutput(header string, class endpointClass) (output, bool) {
	for _, c := range parseAccept(header) {
		for _, known := range formatsOf(c.mediaType) {
			if o, ok := known.with(c.params, class); ok {
				return o, true
			}
		}
	}
	return output{}, false
}

// formatsOf lists what a media range covers, in the server's order of preference.
func formatsOf(mediaType string) []output {
	switch mediaType {
	case typeJSON:
		return []output{{}}
	case typeYAML:
		return []output{{format: formatYAML}}
	case typeProto:
		return []output{{format: formatProto}}
	case "*/*", "application/*":
		return []output{{}, {format: formatYAML}, {format: formatProto}}
	}
	return nil
}

// with applies the parameters of a media range; false if the endpoint does not offer them.
func (o output) with(params map[string]string, class endpointClass) (output, bool) {
	if stream := params["stream"]; stream != "" && (stream != "watch" || o.format == formatYAML) {
		return o, false
	}
	o.pretty = params["pretty"] == "1"
	as, group, version := params["as"], params["g"], params["v"]
	if as == "" && group == "" && version == "" {
		return o, class != classCustom || o.format != formatProto
	}
	switch {
	case class == classDiscover:
		if group == "apidiscovery.k8s.io" && as == "APIGroupDiscoveryList" && (version == "v2" || version == "v2beta1") && o.format != formatYAML {
			o.profile = version
			return o, true
		}
	case (class == classObject || class == classCustom) && group == metav1.GroupName && (version == "v1" || version == "v1beta1"):
		o.version = version
		switch as {
		case "Table":
			o.shape = shapeTable
			return o, o.format != formatProto
		case "PartialObjectMetadata", "PartialObjectMetadataList":
			o.shape, o.list = shapePartial, as == "PartialObjectMetadataList"
			return o, true
		}
	}
	return o, false
}

// wantsPretty adds what the query or a human's client says about indentation.
func wantsPretty(o *output, r *http.Request) bool {
	if o.format == formatProto {
		return false
	}
	if strings.Contains(r.URL.RawQuery, "pretty") {
		if value := r.URL.Query().Get("pretty"); value != "" {
			pretty, _ := strconv.ParseBool(value)
			return pretty
		}
	}
	if o.pretty {
		return true
	}
	agent := r.UserAgent()
	return strings.HasPrefix(agent, "curl") || strings.HasPrefix(agent, "Wget") || strings.HasPrefix(agent, "Mozilla/5.0")
}

// bodyFormat reads the Content-Type of a body; JSON if it names none.
func bodyFormat(header string) (format, error) {
	if header == "" || header == typeJSON {
		return formatJSON, nil
	}
	mediaType, _, err := mime.ParseMediaType(header)
	if err == nil {
		switch mediaType {
		case typeJSON:
			return formatJSON, nil
		case typeYAML:
			return formatYAML, nil
		case typeProto:
			return formatProto, nil
		}
	}
	return 0, negotiation.NewUnsupportedMediaTypeError([]string{typeJSON, typeYAML, typeProto})
}

// notAcceptable is the 406 of upstream.
func notAcceptable(class endpointClass) error {
	if class == classCustom {
		return negotiation.NewNotAcceptableError([]string{typeJSON, typeYAML, typeJSON + ";stream=watch"})
	}
	accepted := []string{typeJSON, typeYAML, typeProto}
	if class == classObject {
		accepted = append(accepted, typeJSON+";stream=watch", typeProto+";stream=watch")
	}
	return negotiation.NewNotAcceptableError(accepted)
}
