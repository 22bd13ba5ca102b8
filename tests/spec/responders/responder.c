/* A subject of the SigLIP conformance kit in C11 with nothing but libm: the live protocol of
 * spec/PROTOCOL.md. `responder [float32|float64]`: it reads and writes that dtype and computes
 * in double. Build: cc -O2 -o responder responder.c -lm */

#include <ctype.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANK = 8, MAX_RESULTS = 16 };

typedef struct {
    int rank;
    size_t shape[MAX_RANK], size;
    double *data;
} tensor;

typedef struct {
    const char *id, *line, *header, *data; /* the question, and the two parts of its file */
    size_t data_size;
    int results;
    const char *names[MAX_RESULTS];
    tensor *tensors[MAX_RESULTS];
} question;

/* ---- ends of a case: a status, and the memory of the case given back ---------------------- */

static jmp_buf case_ended;
static char status[512];

static _Noreturn void end_case(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(status, sizeof status, format, arguments);
    va_end(arguments);
    longjmp(case_ended, 1);
}

static struct block { struct block *next; double aligned[]; } *blocks;

static void *take(size_t bytes) {
    struct block *block = calloc(1, sizeof *block + bytes);
    if (!block) end_case("error: out of memory");
    block->next = blocks;
    blocks = block;
    return block->aligned;
}

static void give_all_back(void) {
    for (struct block *next; blocks; blocks = next) {
        next = blocks->next;
        free(blocks);
    }
}

/* ---- JSON: a value is a pointer to its first character ------------------------------------ */

static const char *skip_space(const char *p) {
    while (isspace((unsigned char)*p)) p++;
    return p;
}

static const char *skip_string(const char *p) {
    for (p++; *p && *p != '"'; p++)
        if (*p == '\\' && p[1]) p++;
    return *p ? p + 1 : p;
}

static const char *skip_value(const char *p) {
    int depth = 0;
    do {
        p = skip_space(p);
        if (*p == '"') { p = skip_string(p); continue; }
        if (*p == '{' || *p == '[') depth++;
        if (*p == '}' || *p == ']') depth--;
        if (strchr("{}[],:", *p)) { p += *p != 0; continue; }
        while (*p && !strchr("{}[],:\"", *p) && !isspace((unsigned char)*p)) p++;
    } while (depth > 0 && *p);
    return p;
}

static char *text(const char *p) {
    if (*p != '"') end_case("error: not a string: %.40s", p);
    const char *end = skip_string(p);
    char *copy = take((size_t)(end - p)), *out = copy;
    /* The kit escapes nothing but quotes and backslashes in what is read here. */
    for (p++; *p && *p != '"'; p++) {
        if (*p == '\\') p++;
        *out++ = *p;
    }
    return copy;
}

static const char *member(const char *object, const char *name) {
    const char *p = skip_space(object);
    if (*p++ != '{') return NULL;
    while (*(p = skip_space(p)) == '"') {
        const char *key = text(p);
        p = skip_space(skip_string(p)) + 1; /* the colon */
        if (!strcmp(key, name)) return skip_space(p);
        p = skip_space(skip_value(p));
        if (*p == ',') p++;
    }
    return NULL;
}

static const char *need(const char *object, const char *name) {
    const char *value = member(object, name);
    if (!value) end_case("error: %s is missing", name);
    return value;
}

static int numbers(const char *p, size_t *into, int most) {
    int count = 0;
    for (p = skip_space(p) + 1; isdigit((unsigned char)*(p = skip_space(p)));) {
        if (count == most) end_case("error: more than %d numbers", most);
        char *end;
        into[count++] = strtoull(p, &end, 10);
        p = skip_space(end);
        if (*p == ',') p++;
    }
    return count;
}

/* ---- safetensors -------------------------------------------------------------------------- */

static void read_file(question *q, const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) end_case("error: cannot read %s", path);
    fseek(file, 0, SEEK_END);
    size_t size = (size_t)ftell(file);
    rewind(file);
    char *bytes = take(size);
    size_t got = fread(bytes, 1, size, file);
    fclose(file);
    uint64_t header = 0; /* the length of the header, little endian */
    if (got >= 8)
        for (int i = 7; i >= 0; i--) header = header << 8 | (unsigned char)bytes[i];
    if (got != size || size < 8 || header > size - 8) end_case("error: %s is cut short", path);
    char *copy = take(header + 1);
    memcpy(copy, bytes + 8, header);
    q->header = copy;
    q->data = bytes + 8 + header;
    q->data_size = size - 8 - header;
}

static tensor *find(question *q, const char *name) {
    char *key = take(strlen(q->id) + strlen(name) + 2);
    sprintf(key, "%s#%s", q->id, name);
    const char *entry = member(q->header, key);
    if (!entry) return NULL;
    const char *dtype = text(need(entry, "dtype"));
    size_t width = !strcmp(dtype, "F64") ? 8 : !strcmp(dtype, "F32") ? 4 : 0;
    if (!width) end_case("unsupported: arrays of %s", dtype);
    tensor *t = take(sizeof *t);
    size_t ends[2];
    t->rank = numbers(need(entry, "shape"), t->shape, MAX_RANK);
    t->size = 1;
    for (int i = 0; i < t->rank; i++) t->size *= t->shape[i];
    if (numbers(need(entry, "data_offsets"), ends, 2) != 2 ||
        ends[1] > q->data_size || ends[0] > ends[1] || ends[1] - ends[0] != t->size * width)
        end_case("error: %s has bad offsets", key);
    t->data = take(t->size * sizeof(double));
    for (size_t i = 0; i < t->size; i++) {
        const char *from = q->data + ends[0] + i * width;
        float single;
        if (width == 8) memcpy(&t->data[i], from, 8);
        else memcpy(&single, from, 4), t->data[i] = single;
    }
    return t;
}

static tensor *input(question *q, const char *name) {
    tensor *t = find(q, name);
    if (!t) end_case("error: %s is missing", name);
    return t;
}

static tensor *result(question *q, const char *name, const tensor *like) {
    tensor *t = take(sizeof *t);
    if (like) *t = *like;
    else t->size = 1;
    t->data = take(t->size * sizeof(double));
    if (q->results == MAX_RESULTS) end_case("error: more than %d results", MAX_RESULTS);
    q->names[q->results] = name;
    q->tensors[q->results++] = t;
    return t;
}

static void write_file(question *q, const char *path, int single) {
    size_t width = single ? 4 : 8, position = 0, room = 64;
    for (int i = 0; i < q->results; i++) room += strlen(q->id) + strlen(q->names[i]) + 320;
    char *header = take(room), *end = header + sprintf(header, "{");
    for (int i = 0; i < q->results; i++) {
        tensor *t = q->tensors[i];
        /* An id holds no character that JSON would escape. */
        end += sprintf(end, "%s\"%s#%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "", q->id,
                       q->names[i], single ? "F32" : "F64");
        for (int a = 0; a < t->rank; a++) end += sprintf(end, "%s%zu", a ? "," : "", t->shape[a]);
        end += sprintf(end, "],\"data_offsets\":[%zu,%zu]}", position, position + t->size * width);
        position += t->size * width;
    }
    end += sprintf(end, "}");
    while ((end - header) % 8) *end++ = ' ';
    FILE *file = fopen(path, "wb");
    if (!file) end_case("error: cannot write %s", path);
    uint64_t length = (uint64_t)(end - header);
    for (int i = 0; i < 8; i++) fputc((int)(length >> 8 * i & 255), file);
    fwrite(header, 1, length, file);
    for (int r = 0; r < q->results; r++)
        for (size_t i = 0; i < q->tensors[r]->size; i++) {
            float narrow = (float)q->tensors[r]->data[i];
            fwrite(single ? (void *)&narrow : (void *)&q->tensors[r]->data[i], width, 1, file);
        }
    if (fclose(file)) end_case("error: cannot write %s", path);
}

/* ---- the operations ----------------------------------------------------------------------- */

static double sigmoid(double x) { return x < 0 ? exp(x) / (1 + exp(x)) : 1 / (1 + exp(-x)); }
static double softplus(double x) { return fmax(x, 0) + log1p(exp(-fabs(x))); }
static double log_sigmoid(double x) { return -softplus(-x); }
static double log_sigmoid_slope(double x) { return sigmoid(-x); }
static const double ROOT = 1.5957691216057308; /* 2 sqrt(2 / pi) */
static double gelu_tanh(double x) { return x * sigmoid(ROOT * (x + 0.044715 * x * x * x)); }
static double gelu_tanh_slope(double x) {
    double s = sigmoid(ROOT * (x + 0.044715 * x * x * x));
    return s + x * s * sigmoid(-ROOT * (x + 0.044715 * x * x * x)) * ROOT * (1 + 0.134145 * x * x);
}

static void axes(const tensor *t, const char *name, int rank) {
    if (t->rank != rank) end_case("rejected: %s must have %d axes, got %d", name, rank, t->rank);
}

/* nll = weight (log1p(exp(-|logit|)) + (|logit| - label logit) / 2), summed, over the images. */
static void pairwise(question *q, int diagonal) {
    tensor *zimg = input(q, "in/zimg"), *ztxt = input(q, "in/ztxt");
    tensor *t_prime = input(q, "in/t_prime"), *b = input(q, "in/b");
    tensor *labels = diagonal ? NULL : input(q, "in/labels");
    tensor *weights = diagonal ? NULL : input(q, "in/weights");
    axes(zimg, "zimg", 2), axes(ztxt, "ztxt", 2), axes(t_prime, "t_prime", 0), axes(b, "b", 0);
    size_t n = zimg->shape[0], m = ztxt->shape[0], d = zimg->shape[1];
    if (ztxt->shape[1] != d) end_case("rejected: rows of %zu and %zu numbers", d, ztxt->shape[1]);
    if (!n || !m) end_case("rejected: an empty batch");
    if (diagonal && n != m) end_case("rejected: %zu images and %zu texts", n, m);
    for (int i = 0; !diagonal && i < 2; i++) {
        tensor *t = i ? weights : labels;
        axes(t, i ? "weights" : "labels", 2);
        if (t->shape[0] != n || t->shape[1] != m)
            end_case("rejected: %s must be (%zu, %zu)", i ? "weights" : "labels", n, m);
    }
    tensor *dloss = find(q, "cotangent/dloss"), *loss = result(q, "out/loss", NULL);
    tensor *dzimg = dloss ? result(q, "grad/dzimg", zimg) : NULL;
    tensor *dztxt = dloss ? result(q, "grad/dztxt", ztxt) : NULL;
    tensor *dt_prime = dloss ? result(q, "grad/dt_prime", NULL) : NULL;
    tensor *db = dloss ? result(q, "grad/db", NULL) : NULL;
    double t = exp(*t_prime->data);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < m; j++) {
            const double *x = zimg->data + i * d, *y = ztxt->data + j * d;
            double cosine = 0, label = diagonal ? (i == j ? 1 : -1) : labels->data[i * m + j];
            double weight = (diagonal ? 1 : weights->data[i * m + j]) / (double)n;
            if (!(fabs(label) <= 1)) end_case("rejected: labels must be in [-1, 1]");
            if (!(weight >= 0)) end_case("rejected: weights must be at least 0");
            for (size_t k = 0; k < d; k++) cosine += x[k] * y[k];
            double logit = t * cosine + *b->data, size = fabs(logit);
            *loss->data += weight * (log1p(exp(-size)) + (size - label * logit) / 2);
            if (!dloss) continue;
            double mismatch = (1 - label) / 2 * sigmoid(logit);
            double dlogit = *dloss->data * weight * (mismatch - (1 + label) / 2 * sigmoid(-logit));
            *dt_prime->data += dlogit * t * cosine;
            *db->data += dlogit;
            for (size_t k = 0; k < d; k++) {
                dzimg->data[i * d + k] += t * dlogit * y[k];
                dztxt->data[j * d + k] += t * dlogit * x[k];
            }
        }
}

static void elementwise(question *q, double value(double), double slope(double)) {
    tensor *x = input(q, "in/x"), *dout = find(q, "cotangent/dout"), *out = result(q, "out/out", x);
    for (size_t i = 0; i < x->size; i++) out->data[i] = value(x->data[i]);
    tensor *dx = dout ? result(q, "grad/dx", x) : NULL;
    for (size_t i = 0; dx && i < x->size; i++) dx->data[i] = dout->data[i] * slope(x->data[i]);
}

static void dense(question *q) {
    tensor *x = input(q, "in/x"), *kernel = input(q, "in/kernel"), *bias = input(q, "in/bias");
    axes(kernel, "kernel", 2);
    size_t d_in = kernel->shape[0], d_out = kernel->shape[1];
    if (!x->rank || x->shape[x->rank - 1] != d_in) end_case("rejected: x must end in %zu", d_in);
    axes(bias, "bias", 1);
    if (bias->shape[0] != d_out) end_case("rejected: bias must be (%zu)", d_out);
    size_t rows = d_in ? x->size / d_in : 0;
    tensor like = *x;
    like.shape[like.rank - 1] = d_out;
    like.size = rows * d_out;
    tensor *out = result(q, "out/out", &like), *dout = find(q, "cotangent/dout");
    tensor *dx = dout ? result(q, "grad/dx", x) : NULL;
    tensor *dkernel = dout ? result(q, "grad/dkernel", kernel) : NULL;
    tensor *dbias = dout ? result(q, "grad/dbias", bias) : NULL;
    for (size_t r = 0; r < rows; r++)
        for (size_t o = 0; o < d_out; o++) {
            double sum = bias->data[o], seed = dout ? dout->data[r * d_out + o] : 0;
            for (size_t i = 0; i < d_in; i++)
                sum += x->data[r * d_in + i] * kernel->data[i * d_out + o];
            out->data[r * d_out + o] = sum;
            if (!dout) continue;
            dbias->data[o] += seed;
            for (size_t i = 0; i < d_in; i++) {
                dx->data[r * d_in + i] += seed * kernel->data[i * d_out + o];
                dkernel->data[i * d_out + o] += x->data[r * d_in + i] * seed;
            }
        }
}

/* out = x / (|x| + eps); dx = (dout - x <x, dout> / (|x| (|x| + eps))) / (|x| + eps). */
static void l2_normalize(question *q) {
    tensor *x = input(q, "in/x"), *dout = find(q, "cotangent/dout"), *out = result(q, "out/out", x);
    tensor *dx = dout ? result(q, "grad/dx", x) : NULL;
    double eps = strtod(need(need(q->line, "attrs"), "eps"), NULL);
    if (!x->rank) end_case("rejected: x must have an axis");
    size_t d = x->shape[x->rank - 1];
    for (size_t start = 0; start < x->size; start += d) {
        double square = 0, inner = 0;
        for (size_t i = start; i < start + d; i++) square += x->data[i] * x->data[i];
        for (size_t i = start; dout && i < start + d; i++) inner += x->data[i] * dout->data[i];
        double norm = sqrt(square), divisor = norm + eps;
        double radial = norm > 0 ? inner / (norm * divisor) : 0;
        for (size_t i = start; i < start + d; i++) {
            out->data[i] = x->data[i] / divisor;
            if (dx) dx->data[i] = (dout->data[i] - x->data[i] * radial) / divisor;
        }
    }
}

static void answer(question *q, int single) {
    const char *operation = text(need(q->line, "operation"));
    read_file(q, text(need(q->line, "prompt")));
    if (!strcmp(operation, "sigmoid_loss")) pairwise(q, 1);
    else if (!strcmp(operation, "pairwise_sigmoid_loss")) pairwise(q, 0);
    else if (!strcmp(operation, "softplus")) elementwise(q, softplus, sigmoid);
    else if (!strcmp(operation, "log_sigmoid")) elementwise(q, log_sigmoid, log_sigmoid_slope);
    else if (!strcmp(operation, "gelu_tanh")) elementwise(q, gelu_tanh, gelu_tanh_slope);
    else if (!strcmp(operation, "dense")) dense(q);
    else if (!strcmp(operation, "l2_normalize")) l2_normalize(q);
    else end_case("unsupported: %s", operation);
    write_file(q, text(need(q->line, "response")), single);
}

int main(int count, char **arguments) {
    const char *dtype = count > 1 ? arguments[1] : "float32";
    if (strcmp(dtype, "float32") && strcmp(dtype, "float64")) {
        fprintf(stderr, "dtype must be float32 or float64, got %s\n", dtype);
        return 2;
    }
    const char *operations = "[\"sigmoid_loss\",\"pairwise_sigmoid_loss\",\"softplus\","
                             "\"log_sigmoid\",\"gelu_tanh\",\"dense\",\"l2_normalize\"]";
    printf("{\"protocol\":1,\"subject\":\"responder.c 1\",\"dtype\":\"%s\","
           "\"operations\":%s,\"gradients\":%s}\n", dtype, operations, operations);
    fflush(stdout);
    static char line[1 << 20], status_json[2 * sizeof status];
    while (fgets(line, sizeof line, stdin)) {
        const char *id = member(line, "id");
        if (!id || *id != '"') {
            fprintf(stderr, "this is no question: %s\n", line);
            return 1;
        }
        strcpy(status, "ok");
        if (!setjmp(case_ended)) answer(&(question){.id = text(id), .line = line},
                                        !strcmp(dtype, "float32"));
        char *out = status_json;
        for (const char *p = status; *p; p++) {
            if (*p == '"' || *p == '\\') *out++ = '\\';
            *out++ = *p;
        }
        *out = 0;
        printf("{\"id\":%.*s,\"status\":\"%s\"}\n", (int)(skip_string(id) - id), id, status_json);
        fflush(stdout);
        give_all_back();
    }
    return 0;
}
