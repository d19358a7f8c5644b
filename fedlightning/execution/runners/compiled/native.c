/* Local steps of several clients in turn, without the interpreter: a compiled graph of U steps is called until each client
 * has taken its own, and what one call gives of the local state, the next one takes. Tensors are made through the stable
 * interface of libtorch that compiled graphs use themselves. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef void *Tensor; /* owned: whoever is given one deletes it or hands it on */
typedef int32_t (*Run)(void *graph, Tensor *in, size_t n_in, Tensor *out, size_t n_out, void *stream, void *proxy);

int32_t aoti_torch_create_tensor_from_blob(void *data, int64_t ndim, const int64_t *sizes, const int64_t *strides,
                                           int64_t offset, int32_t dtype, int32_t device_type, int32_t device_index,
                                           Tensor *result);
int32_t aoti_torch_new_tensor_handle(Tensor tensor, Tensor *result);
int32_t aoti_torch_delete_tensor_object(Tensor tensor);
int32_t aoti_torch_get_data_ptr(Tensor tensor, void **result);

typedef struct {
    char *data;
    int64_t step;   /* bytes to the next client's, or for rows to the next call's; 0 if all clients share it */
    int64_t ndim;
    const int64_t *sizes, *strides;
    int32_t dtype;
    int32_t row;    /* whether every call has its own */
    int32_t output; /* which output is its next value; -1 if it stays */
    const int64_t *index; /* where the examples of all calls lie in data; NULL if it is no gather */
    int64_t examples, count, bytes; /* examples in data, examples of a call, and bytes of an example */
    char *buffer; /* for a call's examples or, where they are few bytes, its rows, so that one tensor serves all calls */
} Input;

typedef struct {
    char *data;
    int64_t step; /* bytes of a client's; of the last output, the losses, bytes of a call's */
} Output;

enum { AHEAD = 2, FIRST = 4096, LINE = 64 }; /* examples, and bytes */

static int32_t at(char *data, const Input *input, Tensor *result) {
    return aoti_torch_create_tensor_from_blob(data, input->ndim, input->sizes, input->strides, 0, input->dtype, 0, 0,
                                              result);
}

static int32_t fill(const Input *input, int64_t position) {
    if (!input->index) {
        memcpy(input->buffer, input->data + position * input->step, (size_t)input->step);
        return 0;
    }
    const int64_t *index = input->index + position * input->count;
    for (int64_t j = 0; j < input->count; j++) {
        if (index[j] < 0 || index[j] >= input->examples) return -1;
        /* An example lies anywhere, so that its lines are asked for before it is its turn; the processor sees to what is left. */
        if (j + AHEAD < input->count)
            for (int64_t b = 0; b < input->bytes && b < FIRST; b += LINE)
                __builtin_prefetch(input->data + index[j + AHEAD] * input->bytes + b, 0, 0);
        memcpy(input->buffer + j * input->bytes, input->data + index[j] * input->bytes, (size_t)input->bytes);
    }
    return 0;
}

/* What a call is given of an input: its own rows, or the tensor that is kept. */
static int32_t next(const Input *input, int64_t row, Tensor kept, Tensor *result) {
    if (input->row && !input->buffer) return at(input->data + row * input->step, input, result);
    int32_t error = input->row ? fill(input, row) : 0;
    return error ? error : aoti_torch_new_tensor_handle(kept, result);
}

/* A graph may write its next results to the same place, so they are moved at once. */
static int32_t move(Tensor tensor, const Output *output, int64_t position) {
    void *data;
    int32_t error = aoti_torch_get_data_ptr(tensor, &data);
    if (!error) memcpy(output->data + position * output->step, data, (size_t)output->step);
    aoti_torch_delete_tensor_object(tensor);
    return error;
}

/* One client's calls, the first of which has the rows at `row`. The last output is the losses. */
static int32_t client(Run run, void *graph, int64_t c, int64_t calls, int64_t row, const Input *inputs, size_t n_in,
                      const Output *outputs, size_t n_out, Tensor *kept, Tensor *in, Tensor *out) {
    int32_t error = 0;
    for (size_t i = 0; i < n_in && !error; i++)
        if (inputs[i].buffer) error = at(inputs[i].buffer, &inputs[i], &kept[i]);
        else if (!inputs[i].row) error = at(inputs[i].data + c * inputs[i].step, &inputs[i], &kept[i]);
    for (int64_t k = 0; k < calls && !error; k++) {
        for (size_t i = 0; i < n_in && !error; i++) error = next(&inputs[i], row + k, kept[i], &in[i]);
        if (!error) error = run(graph, in, n_in, out, n_out, NULL, NULL);
        for (size_t o = 0; o < n_out && !error; o++) error = move(out[o], &outputs[o], o + 1 < n_out ? c : row + k);
        for (size_t i = 0; i < n_in && !error && k == 0; i++) {
            if (inputs[i].row || inputs[i].output < 0) continue;
            const Output *output = &outputs[inputs[i].output];
            aoti_torch_delete_tensor_object(kept[i]);
            kept[i] = NULL;
            error = at(output->data + c * output->step, &inputs[i], &kept[i]);
        }
    }
    for (size_t i = 0; i < n_in; i++)
        if (kept[i]) aoti_torch_delete_tensor_object(kept[i]);
    return error;
}

/* -1 if an example is not there; another number, but 0, if a call failed, of which libtorch has then said why on the error
 * stream. The outputs are then not to be used. */
int32_t fedlightning_walk(Run run, void *graph, int64_t clients, const int64_t *calls, const Input *inputs, size_t n_in,
                          const Output *outputs, size_t n_out) {
    Tensor *tensors = malloc((2 * n_in + n_out) * sizeof *tensors);
    int32_t error = tensors == NULL;
    for (int64_t c = 0, row = 0; c < clients && !error; row += calls[c], c++) {
        memset(tensors, 0, n_in * sizeof *tensors);
        error = client(run, graph, c, calls[c], row, inputs, n_in, outputs, n_out, tensors, tensors + n_in,
                       tensors + 2 * n_in);
    }
    free(tensors);
    return error;
}
