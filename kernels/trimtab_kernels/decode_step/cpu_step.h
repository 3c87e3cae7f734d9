// One decode step, as every thread of the team runs it.

#pragma once

#include "../decode_attention/cpu_attend.h"
#include "../sparse_linear/cpu_select.h"
#include "cpu_functions.h"
#include "cpu_head.h"
#include "cpu_times.h"

namespace trimtab {

// A whole model; see plan.py.
struct Plan {
  int64_t heads, kv_heads, head_dim;
  Tensor embedding, positions;  // no positions where they are not learned
  double embedding_scale;
  int64_t position_offset;
  std::vector<Layer> layers;
  std::optional<Linear> basis_change;
  Norm final_norm;
  Linear head;
  std::optional<double> softcap;
};

// The tokens of a step, and where they are in the cache.
struct Tokens {
  std::vector<int64_t> ids;
  std::vector<Place> places;  // each with its own token included

  int64_t count() const { return static_cast<int64_t>(ids.size()); }
  int64_t position(int64_t row) const { return places[row].length - 1; }
};

// float32 numbers of shape [rows, width], shared by the threads; kept between steps. Results that are
// sums of two come in two of them.
struct Buffer {
  std::vector<float> numbers;
  int64_t rows = 0, width = 0;

  void resize(int64_t new_rows, int64_t new_width, int64_t halves = 1) {
    rows = new_rows;
    width = new_width;
    numbers.resize(std::max<size_t>(numbers.size(), halves * rows * width));
  }
  float* row(int64_t index, int64_t half = 0) {
    return numbers.data() + (half * rows + index) * width;
  }
};

// What the threads share, and what each of them has for itself.
struct Memory {
  Buffer stream, other;  // the residual stream, and what is to take its place or be added to it
  Buffer made;           // what the first linear layers of attention or MLP return
  Buffer hidden;         // what their last linear layer reads
  std::vector<float> sums;
  std::vector<Softmax> softmaxes;

  struct Own {
    Input input;
    std::vector<float> scratch;
    std::vector<int32_t> keys;
    Times times;
  };
  std::vector<Own> own;
};

// What the threads find out about the largest logit of every row.
struct Choice {
  const QuantizedHead& head;
  Buffer approximate;          // logits
  std::vector<float> least;    // [threads, rows]: what the largest logit is at least
  std::vector<Largest> found;  // [threads, rows]
  std::vector<int64_t> exact;  // [threads]: logits computed from the head itself, of all steps
  int64_t rows_seen = 0;       // of all steps

  void begin(int64_t rows, int64_t outputs, int64_t threads) {
    approximate.resize(rows, outputs);
    least.assign(threads * rows, -std::numeric_limits<float>::infinity());
    found.assign(threads * rows, Largest());
    exact.resize(std::max<size_t>(exact.size(), threads));
    rows_seen += rows;
  }
  // The largest logit of a row, once all threads are done.
  Largest largest(int64_t row, int64_t rows) const {
    Largest result;
    for (size_t i = row; i < found.size(); i += rows) {
      if (found[i].token >= 0) {
        result.see(found[i].token, found[i].logit);
      }
    }
    return result;
  }
};

// T: weights and cache
template <typename T>
class Step {
 public:
  // Of `logits` and `choice`, one is null.
  Step(const Plan& plan, const Tokens& rows, Memory& memory, T* logits, Choice* choice)
      : plan_(plan), rows_(rows), memory_(memory), logits_(logits), choice_(choice) {
    int64_t made = 0, hidden = plan.heads * plan.head_dim, sums = 0, softmaxes = 0, scratch = 0;
    parts_.reserve(plan.layers.size());
    for (const Layer& layer : plan.layers) {
      parts_.emplace_back(rows.places, layer.window);
      const auto attention = attention_of(parts_.size() - 1);
      sums = std::max(sums, attention.sums_size());
      softmaxes = std::max(softmaxes, attention.softmaxes_size());
      scratch = std::max(scratch, attention.scratch_size());
      made = std::max({made, outputs(layer.projections), outputs(layer.mlp)});
      hidden = std::max(hidden, layer.down.inputs());
    }
    const int64_t width = plan.embedding.size(1);
    memory.stream.resize(rows.count(), width);
    memory.other.resize(rows.count(), width, 2);
    memory.made.resize(rows.count(), made, 2);
    memory.hidden.resize(rows.count(), hidden);
    memory.sums.resize(std::max<size_t>(memory.sums.size(), sums));
    memory.softmaxes.resize(std::max<size_t>(memory.softmaxes.size(), softmaxes));
    memory.own.resize(std::max<size_t>(memory.own.size(), thread_count()));
    for (Memory::Own& own : memory.own) {
      own.scratch.resize(std::max<size_t>(own.scratch.size(), scratch));
    }
    if (choice) {
      choice->begin(rows.count(), plan.head.outputs(), thread_count());
    }
  }

  void run(const Member& member) {
    Worker{*this, member, memory_.own[member.first], memory_.stream, memory_.other}.run();
  }

 private:
  static int64_t outputs(const std::vector<Linear>& linears) {
    int64_t total = 0;
    for (const Linear& linear : linears) {
      total += linear.outputs();
    }
    return total;
  }

  Attention<T, float> attention_of(int64_t index) const {
    const Layer& layer = plan_.layers[index];
    Attention<T, float> attention(memory_.made.numbers.data(), memory_.made.width, plan_.heads,
                                  layer.keys, layer.values, rows_.places, parts_[index],
                                  {layer.scale, layer.window, layer.softcap});
    attention.use(memory_.sums.data(), memory_.softmaxes.data());
    return attention;
  }

  struct Worker {
    Step& step;
    const Member& member;
    Memory::Own& own;
    Buffer &stream, &other;

    void run() {
      end(Work::waiting);
      embed();
      for (size_t index = 0; index < step.plan_.layers.size(); ++index) {
        const Layer& layer = step.plan_.layers[index];
        change_basis(layer.basis_change);
        attend(layer, index);
        feed_forward(layer);
      }
      change_basis(step.plan_.basis_change);
      read(stream);
      for (int64_t r = 0; r < count(); ++r) {
        normalize<T>(step.plan_.final_norm, own.input.row(r), own.input.row(r));
      }
      own.input.round<T>();
      end(Work::inputs);
      if (step.choice_) {
        choose(*step.choice_);
      } else {
        predict();
      }
      end(Work::head);
    }

    int64_t count() const { return step.rows_.count(); }

    void end(Work work) { own.times.end(work); }
    // Waits for the others, after some work.
    void meet(Work work) {
      end(work);
      member.meet();
      end(Work::waiting);
    }

    void embed() {
      const Plan& plan = step.plan_;
      const int64_t width = stream.width;
      const Range own_part = member.share(width);
      const float scale = static_cast<T>(static_cast<float>(plan.embedding_scale));
      for (int64_t r = 0; r < count(); ++r) {
        const T* const row = plan.embedding.const_data_ptr<T>() + step.rows_.ids[r] * plan.embedding.stride(0);
        for (int64_t i = own_part.begin; i < own_part.end; ++i) {
          stream.row(r)[i] = widen(row[i]) * scale;
        }
        if (plan.positions.defined()) {
          const int64_t place = step.rows_.position(r) + plan.position_offset;
          const T* const added = plan.positions.const_data_ptr<T>() + place * plan.positions.stride(0);
          for (int64_t i = own_part.begin; i < own_part.end; ++i) {
            stream.row(r)[i] += widen(added[i]);
          }
        }
      }
      meet(Work::inputs);
    }

    void change_basis(const std::optional<Linear>& change) {
      if (!change) {
        return;
      }
      read(stream);
      own.input.round<T>();
      own.input.compact();
      const int64_t halves = halves_of(*change);
      make(*change, other, 0, halves);
      meet(Work::transforms);
      const Range part = member.share(stream.width, kLanes);
      for (int64_t r = 0; r < count(); ++r) {
        add_halves(other, r, part, halves);
        std::copy(other.row(r) + part.begin, other.row(r) + part.end, stream.row(r) + part.begin);
      }
      meet(Work::transforms);
    }

    // In how many results the outputs of linear layers come: two, each over half of the inputs, if the
    // weights are input-major. A thread then reads longer pieces of fewer rows. It is two however
    // many threads there are, so that their number changes no bit.
    static int64_t halves_of(const Linear& linear) { return linear.output_major() ? 1 : 2; }
    static int64_t halves_of(const std::vector<Linear>& linears) {
      return std::all_of(linears.begin(), linears.end(),
                         [](const Linear& linear) { return linear.output_major(); })
                 ? 1
                 : 2;
    }

    // Makes this thread's share of a linear layer's outputs, from a column of `target` on.
    void make(const Linear& linear, Buffer& target, int64_t column, int64_t halves) {
      const int64_t outputs = linear.outputs();
      const Range share = member.share(halves * outputs, kLanes);
      for (int64_t half = 0; half < halves; ++half) {
        const Range part{std::max<int64_t>(share.begin - half * outputs, 0),
                         std::min(share.end - half * outputs, outputs)};
        float* const out = target.row(0, half) + column + part.begin;
        if (half < halves_of(linear)) {
          multiply<T>(linear, own.input, half, part, out, target.width);
        } else {
          for (int64_t r = 0; r < count() && part.size() > 0; ++r) {
            std::fill_n(out + r * target.width, part.size(), 0.0f);
          }
        }
      }
    }

    // Adds up the results of some columns.
    static void add_halves(Buffer& made, int64_t row, Range columns, int64_t halves) {
      float* const sums = made.row(row);
      const float* const second = made.row(row, 1);
      for (int64_t i = columns.begin; halves == 2 && i < columns.end; ++i) {
        sums[i] += second[i];
      }
    }

    void attend(const Layer& layer, int64_t index) {
      const Plan& plan = step.plan_;
      Buffer &made = step.memory_.made, &hidden = step.memory_.hidden;
      prepare(layer.attention_input, stream);
      const int64_t halves = halves_of(layer.projections);
      int64_t column = 0;
      for (const Linear& linear : layer.projections) {
        make(linear, made, column, halves);
        column += linear.outputs();
      }
      meet(Work::linear_layers);
      const int64_t all = plan.heads + 2 * plan.kv_heads;
      const Range heads = member.share(count() * all);
      for (int64_t item = heads.begin; item < heads.end; ++item) {
        const int64_t row = item / all, head = item % all;
        add_halves(made, row, {head * plan.head_dim, (head + 1) * plan.head_dim}, halves);
        place_head(layer, row, head);
      }
      meet(Work::attention);
      auto attention = step.attention_of(index);
      hidden.width = plan.heads * plan.head_dim;
      const Range pieces = member.share(attention.items());
      std::fill(own.scratch.begin(), own.scratch.end(), 0.0f);
      attention.each(pieces.begin, pieces.end, own.scratch.data(), [](auto...) {});
      meet(Work::attention);
      const int64_t group = plan.heads / plan.kv_heads * plan.head_dim;
      const Range pairs = member.share(count() * plan.kv_heads);
      for (int64_t pair = pairs.begin; pair < pairs.end; ++pair) {
        const int64_t row = pair / plan.kv_heads, head = pair % plan.kv_heads;
        attention.combine(row, head, hidden.row(row) + head * group);
      }
      meet(Work::attention);
      prepare(layer.attention_output, hidden);
      add(layer.output, layer.post_attention);
    }

    // Norm and rotation of one head; keys and values go to the cache.
    void place_head(const Layer& layer, int64_t row, int64_t index) {
      const Plan& plan = step.plan_;
      const int64_t size = plan.head_dim;
      float* const head = step.memory_.made.row(row) + index * size;
      const int64_t key = index - plan.heads, value = key - plan.kv_heads;
      if (value < 0) {
        if (const auto& norm = key < 0 ? layer.query_norm : layer.key_norm) {
          normalize<T>(*norm, head, head);
        }
        if (layer.cos.defined()) {
          rotate<T>(layer.cos, layer.sin, step.rows_.position(row), head);
        }
      }
      if (key >= 0) {
        const Tensor& cache = value < 0 ? layer.keys : layer.values;
        T* const target = cache.mutable_data_ptr<T>() +
                          step.rows_.places[row].slot * cache.stride(0) +
                          step.rows_.position(row) * cache.stride(1) +
                          (value < 0 ? key : value) * cache.stride(2);
        std::transform(head, head + size, target, [](float x) { return static_cast<T>(x); });
      }
    }

    void feed_forward(const Layer& layer) {
      Buffer &made = step.memory_.made, &hidden = step.memory_.hidden;
      prepare(layer.mlp_input, stream);
      const int64_t width = layer.down.inputs();
      const Range part = member.share(width, kLanes);
      const int64_t halves = halves_of(layer.mlp);
      if (halves == 2) {
        int64_t column = 0;
        for (const Linear& linear : layer.mlp) {
          make(linear, made, column, halves);
          column += linear.outputs();
        }
        meet(Work::linear_layers);
      } else {
        // A thread makes the same part of the gate and of what it multiplies: nobody has to wait.
        const bool one = layer.mlp.size() == 1;
        for (int64_t factor = 0; factor <= layer.gated; ++factor) {
          const int64_t begin = one ? factor * width : 0;
          multiply<T>(layer.mlp[one ? 0 : factor], own.input, 0,
                      {begin + part.begin, begin + part.end},
                      made.row(0) + factor * width + part.begin, made.width);
        }
      }
      hidden.width = width;
      for (int64_t r = 0; r < count(); ++r) {
        for (int64_t factor = 0; factor <= layer.gated; ++factor) {
          add_halves(made, r, {factor * width + part.begin, factor * width + part.end}, halves);
        }
        const float* const gate = made.row(r) + part.begin;
        activate(layer.activation, gate, layer.gated ? gate + width : nullptr, part.size(),
                 hidden.row(r) + part.begin);
      }
      meet(Work::linear_layers);
      prepare(layer.mlp_activation, hidden);
      add(layer.down, layer.post_mlp);
    }

    // Adds what a linear layer makes of the input to the residual stream.
    void add(const Linear& linear, const std::optional<Norm>& norm) {
      const int64_t halves = halves_of(linear);
      make(linear, other, 0, halves);
      const Range part = member.share(stream.width, kLanes);
      if (norm || halves == 2) {
        meet(Work::linear_layers);
      }
      if (norm) {
        read(other, halves);
      }
      for (int64_t r = 0; r < count(); ++r) {
        add_halves(other, r, part, norm ? 1 : halves);
        const float* added = other.row(r);
        if (norm) {
          normalize<T>(*norm, own.input.row(r), own.input.row(r));
          added = own.input.row(r);
        }
        for (int64_t i = part.begin; i < part.end; ++i) {
          stream.row(r)[i] += added[i];
        }
      }
      meet(Work::linear_layers);
    }

    void predict() {
      const Plan& plan = step.plan_;
      own.input.compact();
      constexpr int64_t kBatch = 256;  // logits that a thread holds in float32 at a time
      float batch[kBatch], second[kBatch];
      const int64_t outputs = plan.head.outputs();
      const Range all = member.share(outputs, kLanes);
      const int64_t size = kBatch / count();
      for (int64_t begin = all.begin; begin < all.end; begin += size) {
        const Range part{begin, std::min(all.end, begin + size)};
        multiply<T>(plan.head, own.input, 0, part, batch, size);
        if (halves_of(plan.head) == 2) {
          multiply<T>(plan.head, own.input, 1, part, second, size);
          std::transform(batch, batch + kBatch, second, batch, std::plus<float>());
        }
        for (int64_t r = 0; r < count(); ++r) {
          T* const logits = step.logits_ + r * outputs + part.begin;
          for (int64_t o = 0; o < part.size(); ++o) {
            logits[o] = stored_logit<T>(batch[r * size + o], plan.softcap);
          }
        }
      }
    }

    void choose(Choice& choice) {
      const Linear& head = step.plan_.head;
      const auto& softcap = step.plan_.softcap;
      const Input& input = own.input;
      Buffer& approximate = choice.approximate;
      const Range part = member.share(head.outputs(), kLanes);
      choice.head.approximate(input, part, approximate.row(0) + part.begin, approximate.width);
      std::vector<float> lengths(count());
      for (int64_t r = 0; r < count(); ++r) {
        const float* const x = input.row(r);
        double squares = 0;
        for (int64_t i = 0; i < input.width; ++i) {
          squares += static_cast<double>(x[i]) * x[i];
        }
        lengths[r] = QuantizedHead::reach(std::sqrt(squares));
        float& least = choice.least[member.first * count() + r];
        for (int64_t o = part.begin; o < part.end; ++o) {
          const float at_least = approximate.row(r)[o] - choice.head.radius(o) * lengths[r];
          least = at_least > least ? at_least : least;
        }
      }
      meet(Work::head);
      for (int64_t r = 0; r < count(); ++r) {
        float least = choice.least[r];
        for (size_t i = r; i < choice.least.size(); i += count()) {
          least = std::max(least, choice.least[i]);
        }
        const float cut = cut_below<T>(least, softcap);
        Largest& largest = choice.found[member.first * count() + r];
        int64_t& exact = choice.exact[member.first];
        for (int64_t o = part.begin; o < part.end; ++o) {
          if (!(approximate.row(r)[o] + choice.head.radius(o) * lengths[r] < cut)) {
            float logit;
            dots<1>(input.factors<T>(r), input.width,
                    head.weight.const_data_ptr<T>() + o * head.weight.stride(1), 0, 1, &logit, 1);
            largest.see(o, widen(stored_logit<T>(logit, softcap)));
            ++exact;
          }
        }
      }
    }

    // Copies shared rows into the thread's own input, with both results added up.
    void read(Buffer& source, int64_t halves = 1) {
      own.input.resize(count(), source.width);
      std::copy(source.row(0), source.row(count()), own.input.row(0));
      const float* const second = source.row(0, 1);
      for (int64_t i = 0; halves == 2 && i < count() * source.width; ++i) {
        own.input.numbers[i] += second[i];
      }
    }

    // Makes the thread's own input of shared rows: norm, transform, selection. Every thread does
    // the whole of it but the transform: that is faster than to wait for the others.
    void prepare(const Site& site, Buffer& source) {
      read(source);
      Input& input = own.input;
      for (int64_t r = 0; r < count() && site.norm; ++r) {
        normalize<T>(*site.norm, input.row(r), input.row(r));
      }
      if (site.transform) {
        input.round<T>();
        input.compact();
        end(Work::inputs);
        const int64_t halves = halves_of(*site.transform);
        make(*site.transform, other, 0, halves);
        meet(Work::transforms);
        read(other, halves);
      }
      if (site.selection) {
        const Selection& selection = *site.selection;
        own.keys.resize(std::max<size_t>(own.keys.size(), input.width));
        for (int64_t r = 0; r < count(); ++r) {
          if (step.rows_.position(r) >= selection.dense_prefix) {
            select(input.row(r), input.row(r), input.width, selection.keep, selection.threshold,
                   own.keys.data());
          }
        }
        if (member.first == 0 && selection.counts.defined()) {
          int64_t* const counts = selection.counts.mutable_data_ptr<int64_t>();
          const int64_t size = count() * input.width;
          counts[0] += size - std::count(input.row(0), input.row(0) + size, 0.0f);
          counts[1] += size;
        }
      }
      input.round<T>();
      input.compact();
      end(Work::inputs);
    }
  };

  const Plan& plan_;
  const Tokens& rows_;
  Memory& memory_;
  T* const logits_;
  Choice* const choice_;
  std::vector<Parts> parts_;
};

}  // namespace trimtab
